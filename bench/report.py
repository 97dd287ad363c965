"""Where results go: the report of a machine, and the pages that show tables between marks."""

import os
import re
from pathlib import Path

from . import machine
from .tables import all_tables, speed_table, summary_table, tails_table

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGES = tuple(ROOT / name for name in ("README.md", "docs/performance.md", "docs/accuracy.md"))
RESULTS = HERE / "results"
FEW = "-readme"  # ends the name of the results of the README's cells
MARK = re.compile(r"(<!-- bench: (\w+) from (\S+) -->\n).*?(<!-- bench: end -->)", re.DOTALL)
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")
IMAGE_NAME = re.compile(r"!\[([^\]]*)\]\(")


def report(results, plots):
    """All tables and pictures of a machine, in Markdown; `plots` are paths by name."""
    parts = ["# What `python -m bench` measured", "\n\n".join(machine.describe(results.header))]
    parts += [f"![{name}]({path.name})" for name, path in plots.items()]
    for table in all_tables(results):
        parts.append(f"## {table.title}\n\n{table.markdown()}")
    return "\n\n".join(parts) + "\n"


def part(results, name, plots):
    """The text between one pair of marks; the names of pictures begin with `plots`."""
    where = "\n".join(f"> {line}  " for line in machine.describe(results.header)).rstrip()
    if name == "machine":
        return where
    if name == "speed":
        return f"{speed_table(results).markdown()}\n\n{where}"
    if name == "summary":
        return summary_table(results).markdown()
    if name == "tails":
        return tails_table(results).markdown()
    if name == "plots":
        shown = {"speed": "speed by cell", "confidence": "error against confidence"}
        return "\n\n".join(f"![{text}]({plots}-{plot}.png)" for plot, text in shown.items())
    raise ValueError(f"a page asks for {name!r}, which is no part of the results")


def filled(text, results, path, page=PAGES[0]):
    """The text of a page with the results, which are those of `path`, between its marks.

    Marks that name the results of the README's cells are left alone by those of the grid.
    """
    few = f"{FEW}.json"
    folder = os.path.relpath(RESULTS, page.parent).replace(os.sep, "/")

    def fill(match):
        if match[3].endswith(few) and not str(path).endswith(few):
            return match[0]
        name, before = match[2], f"<!-- bench: {match[2]} from {path} -->\n"
        return f"{before}\n{part(results, name, f'{folder}/{Path(path).stem}')}\n\n{match[4]}"

    return MARK.sub(fill, text)


def fill_pages(fill, pages=None):
    """Write what `fill` makes of the text and the path of each page; the names of the changed."""
    changed = []
    for page in pages or PAGES:
        before = page.read_text(encoding="utf-8")
        after = fill(before, page)
        if after != before:
            page.write_text(after, encoding="utf-8")
            changed.append(page.relative_to(ROOT).as_posix())
    return changed


def sources(text, mark=MARK):
    """The result files that the parts of a page come from."""
    return {match[3] for match in mark.finditer(text)}
