"""Where results go: the report of a machine, and the README between its marks."""

import re
from pathlib import Path

from . import machine
from .tables import all_tables, summary_table, tails_table

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
RESULTS = HERE / "results"
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


def readme_part(results, name, stem):
    """The text between one pair of marks of the README."""
    if name == "machine":
        return "\n".join(f"> {line}  " for line in machine.describe(results.header)).rstrip()
    if name == "summary":
        return summary_table(results).markdown()
    if name == "tails":
        return tails_table(results).markdown()
    if name == "plots":
        shown = {"speed": "speed by cell", "confidence": "error against confidence"}
        return "\n\n".join(
            f"![{text}](bench/results/{stem}-{plot}.png)" for plot, text in shown.items()
        )
    raise ValueError(f"the README asks for {name!r}, which is no part of the results")


def filled(text, results, stem, path):
    """The README's text with the results between its marks."""

    def fill(match):
        name, before = match[2], f"<!-- bench: {match[2]} from {path} -->\n"
        return f"{before}\n{readme_part(results, name, stem)}\n\n{match[4]}"

    return MARK.sub(fill, text)


def sources(text):
    """The result files that the README's parts come from."""
    return {match[3] for match in MARK.finditer(text)}
