"""Formulas as MathML, which browsers display by themselves: no script, no font, no other host."""

import re

from docutils.nodes import SkipNode
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

logger = logging.getLogger(__name__)
# What docutils' converter lacks of TeX: sizes without l or r, and the space around functions.
TEX = (
    (re.compile(r"\\([Bb]igg?)(?![a-zA-Z])"), r"\\\1l"),
    (re.compile(r"\\(ln|log|exp)(?![a-zA-Z]|\s*[_^(\[]|\s*\\(?:[Bb]ig|left))"), r"\\\1\\,"),
    (re.compile(r"(?<=[\w})])\s*(?=\\(?:ln|log|exp)(?![a-zA-Z]))"), r"\\,"),
)


def converted(node, block):
    """The MathML of a node; a warning where the converter does not know a command."""
    tex = node.astext().strip()
    for pattern, replacement in TEX:
        tex = pattern.sub(replacement, tex)
    try:
        return tex2mathml(tex, as_block=block)
    except MathError as error:
        logger.warning("formula %r: %s", node.astext(), error, location=node)
        return ""


def visit_inline(translator, node):
    translator.body.append(converted(node, block=False))
    raise SkipNode


def visit_block(translator, node):
    translator.body.append(f'<div class="formula">{converted(node, block=True)}</div>')
    raise SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
