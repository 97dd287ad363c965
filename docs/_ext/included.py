"""Links to a file that a page of the site includes whole become links to that page.

On the site as in a view of the repository, `[Contributing](../CONTRIBUTING.md)` leads to the text.
"""

import re
from pathlib import Path

from sphinx.addnodes import pending_xref

WHOLE = re.compile(r"```\{include\} (\S+)\n(:\S+:.*\n)*```\s*")


def pages(folder):
    """{file: name of the page that is nothing but this file}."""
    found = {}
    for page in folder.rglob("*.md"):
        if match := WHOLE.fullmatch(page.read_text(encoding="utf-8")):
            name = page.relative_to(folder).with_suffix("").as_posix()
            found[(page.parent / match[1]).resolve()] = name
    return found


def redirect(app, doctree):
    found = pages(Path(app.srcdir))
    for node in doctree.findall(pending_xref):
        if (node["refdomain"], node["reftype"]) == ("doc", "myst"):
            path = Path(app.srcdir, f"{node['reftarget']}.md").resolve()
            node["reftarget"] = found.get(path, node["reftarget"])


def setup(app):
    app.connect("doctree-read", redirect)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
