"""The examples of docstrings and pages, as their readers would run them.

In a page, the blocks run from top to bottom in one namespace. What a block begins with decides how:

    ```python                      executed
    >>> in ```python or ```pycon   a doctest: what it prints is compared (... stands for anything)
    .. plot:: in ```{eval-rst}     executed without a display, each in an empty namespace
    ```python no-run: REASON       neither; the reason is required
    <!-- python                    executed, and hidden from the reader: what the examples take as
    -->                            given
"""

import ast
import builtins
import doctest
import re
import textwrap
import traceback
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDS = {
    "xentropy.torch": ["torch"],
    "xentropy.torch.parallel": ["torch"],
    "xentropy.jax": ["jax", "optax"],
    "xentropy.transformers": ["torch", "transformers"],
    "xentropy.dask": ["dask"],
    "figure_style": ["matplotlib"],
}
FENCE = re.compile(
    r"(?ms)^(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,}|:{3,})(?P<info>[^\n]*)\n(?P<body>.*?)"
    r"^[ \t]*(?P=fence)[ \t]*$"
    r"|^<!-- (?P<hidden>python)\n(?P<given>.*?)^-->"
)
PLOT = re.compile(r"(?m)^\.\. plot::\n(?:[ ]+\S[^\n]*\n)*\n(?P<code>(?:(?:[ ]+[^\n]*)?\n)+)")
CODE = re.compile(r"(?:\{code-block\}\s*)?(?:python|pycon)\b(?P<mark>.*)")
NO_RUN = re.compile(r"\s*no-run(?::\s*(?P<reason>.*))?")


@dataclass
class Block:
    """Code of a page: its text without indentation, the line where it begins, its kind."""

    code: str
    line: int
    kind: str = "python"  # or plot, or no-run


@dataclass
class Outcome:
    """What came of the blocks of a page: texts that begin with the line."""

    ran: int
    failed: list[str]
    left_out: list[str]


def pages() -> list[Path]:
    """Every page that is written for people."""
    folders = [ROOT.glob("*.md"), (ROOT / "docs").rglob("*.md"), (ROOT / "xentropy").rglob("*.md")]
    found = (path for folder in folders for path in folder)
    return sorted(path for path in found if "_build" not in path.parts)


def blocks(text: str, first: int = 1) -> list[Block]:
    """The blocks of code in Markdown; those inside of other directives too."""
    found = []
    for match in FENCE.finditer(text):
        hidden = match["hidden"]
        body = match["given"] if hidden else match["body"]
        line = first + text.count("\n", 0, match.start("given" if hidden else "body"))
        info = "python" if hidden else match["info"].strip()
        if code := CODE.fullmatch(info):
            found.append(_block(body, line, code["mark"]))
        elif info == "{eval-rst}":
            found += _plots(body, line)
        elif info.startswith("{"):
            found += blocks(body, line)
    return found


def _block(body: str, line: int, mark: str) -> Block:
    options = re.match(r"(?:[ \t]*:[\w-]+:[^\n]*\n)*\n?", body).group()
    kind = "python"
    if mark := mark.strip():
        said = NO_RUN.fullmatch(mark)
        if not said or not said["reason"]:
            raise ValueError(f"line {line}: {mark!r} is not 'no-run: REASON'")
        kind = "no-run"
    code = textwrap.dedent(body[len(options) :])
    return Block(code, line + options.count("\n"), kind)


def _plots(body: str, line: int) -> list[Block]:
    """What `.. plot::` draws: the code after its options, which end with an empty line."""
    found = []
    for match in PLOT.finditer(body):
        before = body.count("\n", 0, match.start("code"))
        found.append(Block(textwrap.dedent(match["code"]), line + before, "plot"))
    return found


def docstrings(path: Path) -> list[Block]:
    """The docstrings of a source that have examples; in Cython, every string of three quotes."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in {".py", ".pyi"}:
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
        found = [(ast.get_docstring(n), n.body[0].lineno) for n in nodes if ast.get_docstring(n)]
    else:
        strings = re.finditer(r'(?s)"""(.*?)"""', text)
        found = [(m[1], 1 + text.count("\n", 0, m.start())) for m in strings]
    return [Block(doc, line) for doc, line in found if re.search(r"(?m)^\s*>>> ", doc)]


def statements(code: str) -> str:
    """What is executed, without prompts and outputs."""
    if not is_doctest(code):
        return code
    return "".join(example.source for example in doctest.DocTestParser().get_examples(code))


def is_doctest(code: str) -> bool:
    return re.search(r"(?m)^\s*>>> ", code) is not None


def imported(tree: ast.AST) -> set[str]:
    """Libraries that the code imports, and what those need that are not installed with them."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    needed = {name.partition(".")[0] for name in names}
    return needed.union(*(NEEDS[name] for name in names if name in NEEDS))


def missing(tree: ast.AST) -> list[str]:
    return sorted(name for name in imported(tree) if find_spec(name) is None)


def names(tree: ast.AST, *, stored: bool) -> set[str]:
    """Names that the code binds at any level, or those that it uses."""
    context = ast.Store if stored else ast.Load
    found = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, context)}
    if stored:
        kinds = ast.FunctionDef | ast.ClassDef
        found |= {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
        aliases = [node for node in ast.walk(tree) if isinstance(node, ast.alias)]
        found |= {(a.asname or a.name).partition(".")[0] for a in aliases}
    return found


def execute(block: Block, name: str, namespace: dict) -> str:
    """Run it in the namespace; what went wrong, or nothing."""
    if is_doctest(block.code):
        test = doctest.DocTestParser().get_doctest(
            block.code, namespace, name, name, block.line - 1
        )
        test.globs = namespace  # it takes a copy
        said = []
        runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
        runner.run(test, out=said.append, clear_globs=False)
        return "".join(said)
    try:
        # The traceback then has the lines of the page.
        exec(compile("\n" * (block.line - 1) + block.code, name, "exec"), namespace)
    except Exception:
        return traceback.format_exc()
    return ""


def run(every: list[Block], name: str) -> Outcome:
    """Run the blocks of a page in turn, but those that need a missing library or its names."""
    page = {"__name__": "__main__"}
    outcome, lost = Outcome(0, [], []), {}
    for block in every:
        if block.kind == "no-run":
            continue
        space = page if block.kind == "python" else {"__name__": "__main__"}
        try:
            tree = ast.parse(statements(block.code))
        except (SyntaxError, ValueError) as error:
            outcome.failed.append(f"{name}:{block.line}: {error}")
            continue
        used = names(tree, stored=False) - space.keys() - set(dir(builtins))
        absent = missing(tree) or sorted({a for n in used & lost.keys() for a in lost[n]})
        if absent:
            outcome.left_out.append(f"{name}:{block.line}: {', '.join(absent)} not installed")
            if space is page:
                lost |= dict.fromkeys(names(tree, stored=True), absent)
            continue
        outcome.ran += 1
        if wrong := execute(block, name, space):
            outcome.failed.append(f"{name}:{block.line}:\n{wrong}")
    return outcome
