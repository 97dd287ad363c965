"""The types of the public calls, as a checker finds them, and that they are those of the code."""

import inspect
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import xentropy as xe
from xentropy import _types, reference

ROOT = Path(__file__).resolve().parent.parent
FRONTS = {"example": "numpy", "torch_example": "torch", "jax_example": "optax"}


@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed")
@pytest.mark.parametrize("name", FRONTS)
def test_mypy_finds_the_types_of_the_example(name, tmp_path):
    if find_spec(FRONTS[name]) is None:
        pytest.skip(f"{FRONTS[name]} is not installed")
    example = ROOT / "tests" / "typing" / f"{name}.py"
    found = Path(xe.__file__).parent.parent  # the package that is tested, wherever it is
    said = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path, example],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": "" if "site-packages" in found.parts else str(found)},
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stdout + said.stderr


CALLS = [
    (xe.cross_entropy, _types.Options, {"logits", "target", "weight"}),
    (xe.cross_entropy_with_grad, _types.GradientOptions, {"logits", "target", "weight"}),
    (xe.linear_cross_entropy, _types.LinearOptions, {"input", "linear_weight", "target"}),
    (
        xe.linear_cross_entropy_with_grad,
        _types.LinearGradientOptions,
        {"input", "linear_weight", "target"},
    ),
    (xe.kl_divergence, _types.Divergence, {"target", "logits"}),
    (reference.cross_entropy_with_grad, _types.GradientFormula, {"logits", "target", "weight"}),
]


@pytest.mark.parametrize(("function", "options", "arrays"), CALLS)
def test_the_options_of_the_overloads_are_those_of_the_function(function, options, arrays):
    listed = options.__required_keys__ | options.__optional_keys__
    assert listed | arrays | {"reduction"} == set(inspect.signature(function).parameters)


def test_the_stub_of_the_reference_has_its_functions():
    stub = (ROOT / "xentropy" / "reference.pyi").read_text(encoding="utf-8")
    assert {name for name in reference.__all__ if f"def {name}(" not in stub} == set()


def test_nothing_is_imported_for_types():
    """`numpy.typing` alone would cost half a millisecond of every start."""
    command = "import sys, xentropy; print({'numpy.typing', 'xentropy._types'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert run.stdout.strip() == "set()", run.stderr
