"""Sphinx configuration: `pip install -e ".[docs]" && sphinx-build -W docs docs/_build`."""

import sys
from pathlib import Path

import xentropy

here = Path(__file__).parent
sys.path[:0] = [str(here / "_ext"), str(here / "tutorial")]  # extensions; what figures share

project = "xentropy"
author = "The xentropy authors"
copyright = author
version = release = xentropy.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "matplotlib.sphinxext.plot_directive",
    "included",
    "mathml",
    "stand_ins",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "dollarmath", "smartquotes"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # api/core.md includes a part of README below its title

default_role = "py:obj"  # `name` in a docstring: a link, if there is a page for it
autodoc_typehints = "none"  # the docstrings name the types
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
# They cannot be imported without torch, JAX, dask.
stand_ins = ["xentropy.torch", "xentropy.torch.parallel", "xentropy.transformers"]
stand_ins += ["xentropy.jax", "xentropy.dask"]

plot_html_show_source_link = False
plot_html_show_formats = False
plot_formats = [("svg", 100), ("png", 200)]

html_theme = "pydata_sphinx_theme"
html_title = f"xentropy {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_sidebars = {"*": []}  # the pages in folders alone have neighbours to list
html_theme_options = {
    "logo": {"text": "xentropy"},
    "show_prev_next": False,
    "navbar_align": "left",
    "footer_start": ["copyright"],
    "footer_end": [],
}
