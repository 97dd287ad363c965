"""The functions of a source file and how long they are: Python, Cython, C++.

A length is the number of lines from the first of the declaration to the last of the body, the
docstring apart. Decorators and `template <...>` on lines of their own do not count.
"""

import ast
import re


def lengths(path):
    """(name, lines) of every function of the file, those inside of others too."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in {".py", ".pyi"}:
        return of_python(text)
    return of_cython(text) if path.suffix in {".pyx", ".pxi"} else of_cpp(text)


def of_python(text):
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = node.end_lineno - node.lineno + 1
        if ast.get_docstring(node) is not None:
            lines -= node.body[0].end_lineno - node.body[0].lineno + 1
        found.append((node.name, lines))
    return found


# --- Cython: by indentation ---

CYTHON = re.compile(r"(\s*)(?:cdef|cpdef|def|async\s+def)\b[^#=]*?(\w+)\s*\(")


def of_cython(text):
    lines, found = text.splitlines(), []
    for start, line in enumerate(lines):
        declared = CYTHON.match(line)
        if not declared:
            continue
        head, colon = start, re.compile(r":\s*(#.*)?$")
        open_brackets = 0
        while True:  # to the end of the logical line
            open_brackets += sum(lines[head].count(c) for c in "([{")
            open_brackets -= sum(lines[head].count(c) for c in ")]}")
            if open_brackets <= 0 or head + 1 == len(lines):
                break
            head += 1
        if not colon.search(lines[head]):
            continue  # a variable, or a declaration without a body
        end = head
        for at in range(head + 1, len(lines)):
            if lines[at].strip() and len(lines[at]) - len(lines[at].lstrip()) <= len(declared[1]):
                break
            end = at if lines[at].strip() else end
        length = end - start + 1 - docstring_lines(lines[head + 1 : end + 1])
        found.append((declared[2], length))
    return found


def docstring_lines(body):
    text = "\n".join(body)
    found = re.match(r'\s*[rR]?("""|\'\'\').*?\1', text, re.DOTALL)
    return found[0].lstrip("\n").count("\n") + 1 if found else 0


# --- C++: by braces ---

NO_CODE = re.compile(
    r'R"([^\s()\\]{0,16})\((?:.*?)\)\1"'  # raw strings
    r'|"(?:\\.|[^"\\\n])*"'
    r"|(?<![0-9A-Fa-f])'(?:\\.|[^'\\\n])+'"  # not the separators of digits
    r"|//[^\n]*|/\*.*?\*/"
    r"|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*",  # preprocessor, with continued lines
    re.DOTALL | re.MULTILINE,
)


def without(pattern, text):
    """The text with what matches blanked, line by line where it was."""
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def nested(text, left, right):
    """The text with everything between outer brackets blanked, brackets kept."""
    depth, out = 0, []
    for c in text:
        depth -= c == right and depth > 0
        out.append(c if depth == 0 or c == "\n" else " ")
        depth += c == left
    return "".join(out)


def of_cpp(text):
    code = without(NO_CODE, text)
    found, scopes, begins = [], [], 0  # scopes: (is it a function, name, first line)
    for at, c in enumerate(code):
        inside = any(function for function, *_ in scopes)
        if c == "{":
            name, skipped = (None, 0) if inside else declaration(code[begins:at])
            scopes.append((name is not None, name, code.count("\n", 0, begins + skipped)))
        elif c == "}":
            if not scopes:
                raise ValueError("a brace is closed that was not opened")
            function, name, first = scopes.pop()
            if function:
                found.append((name, code.count("\n", 0, at) - first + 1))
                inside = False
        if c in "{};" and not inside:
            begins = at + 1
    if scopes:
        raise ValueError("a brace is opened that is not closed")
    return found


def declaration(head):
    """Name of the function that these words declare, or None, and where in them it begins."""
    template = re.compile(r"\btemplate\s*(?=<)")
    flat = head
    while found := template.search(flat):
        angles = nested(flat[found.end() :], "<", ">")
        end = found.end() + angles.index(">") + 1
        flat = flat[: found.start()] + re.sub(r"[^\n]", " ", flat[found.start() : end]) + flat[end:]
    begins = len(flat) - len(flat.lstrip())
    flat = nested(re.sub(r"\boperator\s*[^\w\s(]+", "operator", flat), "(", ")")
    flat = re.sub(r"\b(?:__attribute__|alignas|requires)\s*\(\s*\)", "", flat)
    call = re.search(r"([~\w]+)\s*\(\s*\)", flat)
    scope = re.search(r"\b(?:struct|class|union|enum)\s+\w+\s*$", flat)
    return (None, 0) if scope or not call or "=" in flat else (call[1], begins)
