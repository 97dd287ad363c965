"""Formulas as MathML, which browsers display by themselves: no script, no font, no other host."""

import re

from docutils.nodes import SkipNode
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

logger = logging.getLogger(__name__)
SIZE = re.compile(r"\\([Bb]igg?)(?![a-zA-Z])")  # docutils knows them with l and r alone


def converted(node, block):
    """The MathML of a node; a warning where the converter does not know a command."""
    try:
        return tex2mathml(SIZE.sub(r"\\\1l", node.astext().strip()), as_block=block)
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
