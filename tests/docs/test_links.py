"""Links between files of the repository lead somewhere: files, headings, pictures."""

import re
import tomllib
from pathlib import Path

import pytest
from compile_driver import settings

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "xentropy", "bench")
PAGES = sorted(
    path
    for found in (ROOT.glob("*.md"), *((ROOT / folder).rglob("*.md") for folder in FOLDERS))
    for path in found
    if "_build" not in path.parts
)
# Fenced code, and code in a line: what looks like a link there is none.
CODE = re.compile(
    r"(?ms)^([ \t]*)(`{3,}|~{3,})[^\n]*\n.*?^[ \t]*\2[ \t]*$|(`+)(?!`).+?(?<!`)\3(?!`)"
)
LINK = re.compile(
    r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)|^\[[^\]]+\]: (\S+)|(?:src|href)=\"([^\"]+)\"", re.M
)
INCLUDE = re.compile(r"(?m)^```\{include\} (\S+)$")
HEADING = re.compile(r"(?m)^#{1,6} +(.*?)(?: +#+)?$")
LABEL = re.compile(r"(?m)^\(([^)]+)\)=$")


def links(text):
    """The targets of all links and pictures, but those to other hosts."""
    text = CODE.sub("", text)
    found = (next(filter(None, groups)) for groups in LINK.findall(text))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(path):
    """What a link to the page may have after its #: headings as GitHub and MyST name them."""
    text = path.read_text(encoding="utf-8")
    found = set()
    for included in INCLUDE.findall(text):
        found |= anchors(path.parent / included)
    for heading in HEADING.findall(re.sub(r"(?ms)^(`{3,}).*?^\1$", "", text)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        count = sum(bool(re.fullmatch(rf"{re.escape(name)}(-\d+)?", each)) for each in found)
        found.add(f"{name}-{count}" if count else name)
    return found | set(LABEL.findall(text))


def broken(path):
    """The links of a page that lead nowhere."""
    found = []
    for target in links(path.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        there = path.parent / name if name else path
        if not there.exists() or (anchor and anchor not in anchors(there)):
            found.append(target)
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_of_a_page(path):
    assert broken(path) == []


def test_on_a_package_index_the_links_of_the_readme_are_absolute():
    text = settings().readme()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert links(text) == []
    for target in links((ROOT / "README.md").read_text(encoding="utf-8")):
        assert f"]({project['urls']['Source']}/blob/v{project['version']}/{target})" in text


# --- the test itself ---


def test_what_is_broken_is_found(tmp_path):
    (tmp_path / "included.md").write_text("# Two words, `code`!\n\n## Again\n\n## Again\n")
    (tmp_path / "other.md").write_text(
        "```{include} included.md\n```\n\n(a-label)=\n# [Text](x.md)\n"
    )
    page = tmp_path / "page.md"
    good = ["other.md", "other.md#two-words-code", "included.md#again-1", "other.md#a-label"]
    good += ["other.md#text", "#here"]
    bad = [
        "absent.md",
        "other.md#absent",
        "#there",
        "absent.png",
        "included.md#again-2",
        "gone.svg",
    ]
    text = "# Here\n" + "".join(f"[text]({target})\n" for target in good + bad[:3])
    text += f'![picture]({bad[3]} "title") [two\nlines]({bad[4]}) <img src="{bad[5]}">\n'
    text += "[x](https://host/absent.md) `[no](link)` ``[no](`link)``\n\n```\n[no](link)\n```\n"
    page.write_text(text + "\n[reference]: lost.md\n")
    assert broken(page) == [*bad, "lost.md"]
