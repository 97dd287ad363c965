"""The site is built without a warning, complete, and asks no other host for anything."""

import ast
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# Attributes of elements that a browser loads without being asked to.
LOADED = {("link", "href"), ("form", "action")}
LOADED |= {(tag, "src") for tag in ("script", "img", "iframe", "source", "video", "embed")}
LOADED |= {("img", "srcset"), ("source", "srcset"), ("object", "data"), ("use", "href")}
HOST = re.compile(r"(?i)(https?:)?//[\w.-]+")

# Run in the build: as if the frameworks were not installed.
BUILD = """
import sys
from importlib.abc import MetaPathFinder
ABSENT = {"torch", "jax", "optax", "dask", "xgboost", "lightgbm", "catboost"}
class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from sphinx.cmd.build import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    out = tmp_path_factory.mktemp("site")
    options = ["-q", "-W", "--keep-going", "-d", str(out / "doctrees")]
    command = [sys.executable, "-c", BUILD, *options, str(DOCS), str(out / "html")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return out / "html"


class Loads(HTMLParser):
    """Collects what a browser would load from other hosts."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "link" and attributes.get("rel") in {"canonical", "search", "license"}:
            return
        for name, value in attrs:
            if (tag, name) in LOADED and HOST.match((value or "").strip()):
                self.found.append(f"{tag} {name} {value}")
            if name == "style":
                self.found += foreign_in_css(value or "")


def foreign_in_css(text):
    """What a style sheet would load from other hosts."""
    without_comments = re.sub(r"(?s)/\*.*?\*/", "", text)
    found = re.findall(r"url\(\s*[\"']?([^)\"']+)|@import\s+[\"']([^\"']+)", without_comments)
    return [each for pair in found for each in pair if HOST.match(each)]


def test_no_page_loads_anything_from_other_hosts(site):
    pages = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    assert len(pages) > 20
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert loads.found == [], page.name
    for sheet in site.rglob("*.css"):
        assert foreign_in_css(sheet.read_text(encoding="utf-8")) == [], sheet.name


def test_every_public_name_is_documented(site):
    pages = {"core": "", "torch": ".torch", "jax": ".jax", "boosting": ".boosting"}
    for page, module in pages.items():
        text = (site / "api" / f"{page}.html").read_text(encoding="utf-8")
        init = ROOT.joinpath("xentropy", *module.split("."), "__init__.py")
        for node in ast.parse(init.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
                names = set(ast.literal_eval(node.value)) - {"__version__", "ffi_targets"}
        assert [n for n in sorted(names) if f'id="xentropy{module}.{n}"' not in text] == []


def test_signatures_are_those_of_the_source(site):
    text = re.sub(r"<[^>]+>", "", (site / "api" / "torch.html").read_text(encoding="utf-8"))
    assert "xentropy.torch.patch()" in text
    assert "weight=None, size_average=None, ignore_index=-100, reduce=None" in text
    assert "xentropy.torch.kl_divergence(target, logits, *, dim=1" in text


def test_formulas_are_mathml(site):
    text = (site / "api" / "core.html").read_text(encoding="utf-8")
    assert text.count("<math") > 10
    assert not re.search(r"\\(sum|frac|mathrm)", re.sub(r"<[^>]+>", "", text))
    assert not re.search(r'(?i)src="[^"]*mathjax', text)


def test_the_search_finds_without_a_server(site):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert index.startswith("Search.setIndex(")
    assert '"guides/segmentation"' in index


# --- the test itself ---


def test_what_is_loaded_from_other_hosts_is_found():
    loads = Loads()
    loads.feed(
        '<a href="https://a"></a><img src="x.png"><script src="//cdn/x.js"></script>'
        '<link rel="stylesheet" href="https://b/c.css"><p style="background: url(http://d/e)">'
    )
    assert loads.found == ["script src //cdn/x.js", "link href https://b/c.css", "http://d/e"]
    assert foreign_in_css("@import 'https://f'; /* url(http://no) */ a {b: url(g.woff)}") == [
        "https://f"
    ]
