"""Modules that are documented without the library that they are made for.

`xentropy.torch` cannot be imported without PyTorch, and a page must not depend on what is
installed. Signatures and docstrings are read from the source instead: a stand-in module has the
public functions and classes with their docstrings, and nothing else in their bodies.
"""

import ast
import math
import sys
import types
from pathlib import Path

import xentropy

KEPT = {"property", "classmethod", "staticmethod"}


def literal(node):
    """A default as it stands; ... for one that is a name, but for nan."""
    if node and ast.unparse(node) == "math.nan":
        return ast.Constant(math.nan)
    try:
        return node and ast.Constant(ast.literal_eval(node))
    except ValueError:
        return ast.Constant(...)


def without_body(node):
    """The definition of a function or class, with its docstring for a body."""
    docstring = [ast.Expr(ast.Constant(ast.get_docstring(node, clean=False) or ""))]
    node.decorator_list = [d for d in node.decorator_list if getattr(d, "id", None) in KEPT]
    if isinstance(node, ast.ClassDef):
        node.bases, node.keywords = [], []
        docstring += [without_body(each) for each in node.body if isinstance(each, ast.FunctionDef)]
    else:
        node.returns = None
        node.args.defaults = [literal(each) for each in node.args.defaults]
        node.args.kw_defaults = [literal(each) for each in node.args.kw_defaults]
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
    node.body = docstring
    return node


def definitions(path):
    """{name: its definition} of the functions and classes of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = ast.FunctionDef, ast.ClassDef
    return {node.name: without_body(node) for node in tree.body if isinstance(node, kinds)}


def stand_in(name):
    """A module with the docstring and `__all__` of the package `name`, and what that imports."""
    folder = Path(xentropy.__file__).parent.joinpath(*name.split(".")[1:])
    tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    module = types.ModuleType(name, ast.get_docstring(tree))
    module.__file__ = str(folder / "__init__.py")
    imports = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.level == 1]
    for node in imports:
        found = definitions(folder / f"{node.module}.py")
        body = [found[alias.name] for alias in node.names if alias.name in found]
        code = ast.fix_missing_locations(ast.Module(body, type_ignores=[]))
        exec(compile(code, str(folder), "exec"), vars(module))
    (names,) = [n for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__"]
    module.__all__ = [each for each in ast.literal_eval(names.value) if hasattr(module, each)]
    return module


def install(app, config):
    for name in config.stand_ins:
        sys.modules[name] = stand_in(name)


def setup(app):
    app.add_config_value("stand_ins", [], "env")
    app.connect("config-inited", install)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
