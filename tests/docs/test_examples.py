"""Every example of a docstring or a page runs as it stands, and prints what it says."""

import importlib
import sys

import pytest
from helpers import examples
from helpers.examples import ROOT, Block

import xentropy

SOURCES = [
    path
    for path in sorted((ROOT / "xentropy").rglob("*.p*"))
    if path.suffix in {".py", ".pyi", ".pyx", ".pxi"}
]
EXAMPLES = [(path, block) for path in SOURCES for block in examples.docstrings(path)]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def check(outcome):
    assert not outcome.failed, "\n".join(["", *outcome.failed])
    if outcome.left_out:
        pytest.skip("; ".join(outcome.left_out))


@pytest.fixture
def quiet(tmp_path, monkeypatch):
    """Files go to a folder of the test, and figures are not shown."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.syspath_prepend(ROOT / "docs" / "tutorial")  # what its figures share
    yield
    if "matplotlib" in sys.modules:
        sys.modules["matplotlib"].pyplot.close("all")


@pytest.mark.parametrize(
    ("path", "block"), EXAMPLES, ids=[f"{name_of(path)}:{block.line}" for path, block in EXAMPLES]
)
def test_docstring(path, block, quiet):
    """In an empty namespace: whoever copies it has no other."""
    check(examples.run([block], name_of(path)))


@pytest.mark.parametrize("path", examples.pages(), ids=name_of)
def test_page(path, quiet):
    check(examples.run(examples.blocks(path.read_text(encoding="utf-8")), name_of(path)))


@pytest.mark.parametrize(
    "module",
    ["xentropy", "xentropy.torch", "xentropy.torch.parallel", "xentropy.jax", "xentropy.dask"],
)
def test_every_public_call_has_an_example(module):
    absent = [name for name in examples.NEEDS.get(module, []) if not examples.find_spec(name)]
    if absent:
        pytest.skip(f"{', '.join(absent)} not installed")
    calls = importlib.import_module(module)
    public = {name: getattr(calls, name) for name in calls.__all__}
    without = [n for n, call in public.items() if callable(call) and ">>> " not in call.__doc__]
    assert not without


# --- the test itself ---

PAGE = """
Text with `>>> no example`.

<!-- python
import numpy as np
x = np.arange(3)
-->

```python
y = x.sum()
```

````{tab-set}
```{code-block} python
:caption: a caption
>>> int(y)
WHAT IT PRINTS
```
````

```{eval-rst}
.. plot::
   :alt: nothing, in
      two lines

   z = 1

   assert "y" not in globals()
   DRAWN
```

* In a list:

  ```pycon
  >>> {"a": 1}["b"]
  Traceback (most recent call last):
  KeyError: 'b'
  ```

```sh
exit 1
```

```python no-run: an hour
while True: pass
```
"""


def of(text):
    return examples.run(examples.blocks(text), "page.md")


def test_all_blocks_of_a_page_are_run():
    outcome = of(PAGE.replace("WHAT IT PRINTS", "3").replace("DRAWN", ""))
    assert (outcome.ran, outcome.failed, outcome.left_out) == (5, [], [])


def test_a_wrong_output_is_found_with_its_line():
    (failed,) = of(PAGE.replace("WHAT IT PRINTS", "4").replace("DRAWN", "")).failed
    line = 1 + PAGE[: PAGE.index(">>> int")].count("\n")
    assert f"page.md:{line}" in failed
    assert f"line {line}," in failed


def test_a_wrong_plot_is_found_with_its_line():
    page = PAGE.replace("WHAT IT PRINTS", "3").replace("DRAWN", "1 / 0")
    (failed,) = of(page).failed
    assert f'File "page.md", line {1 + page[: page.index("1 / 0")].count(chr(10))}' in failed


def test_an_error_is_found_with_its_line():
    (failed,) = of("\n\n```python\nx = 1\nx.y\n```\n").failed
    assert 'File "page.md", line 5' in failed


@pytest.mark.parametrize("mark", ["no-run", "no-run:", "no-run because", "skip: slow"])
def test_what_is_not_run_needs_a_reason(mark):
    with pytest.raises(ValueError, match="REASON"):
        examples.blocks(f"```python {mark}\n1 / 0\n```\n")


def test_without_a_library_what_needs_it_is_left_out():
    text = "```python\nimport absent_library as a\nb = a.b\n```\n```python\nc = b\n```\n"
    outcome = of(text + "```python\nd = 1\n```\n")
    assert (outcome.ran, outcome.failed) == (1, [])
    assert outcome.left_out == [
        "page.md:2: absent_library not installed",
        "page.md:6: absent_library not installed",
    ]


def test_a_figure_that_is_left_out_takes_no_names_along():
    figure = "```{eval-rst}\n.. plot::\n\n   import absent_library\n   x = 1\n```\n"
    outcome = of(figure + "```python\nfor x in range(3):\n    y = x\n```\n")
    assert (outcome.ran, outcome.failed, len(outcome.left_out)) == (1, [], 1)


def test_a_docstring_has_no_names_of_its_module():
    assert examples.run([Block(">>> cross_entropy([[0.0]], [0])\n0.0\n", 1)], "doc").failed
    assert xentropy.cross_entropy([[0.0]], [0]) == 0.0
