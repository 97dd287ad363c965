"""The largest errors of each library, by what the logits are like.

    python -m bench.exactness [--output results.json]

Losses and gradients of single rows, in units of the last place of float32 (float64 in its rows; the
gradients of 16-bit logits in theirs), against the float64 and long double reference. A certain loss
of 2e-9 answered by 0 is an error of 8e6 units. Not timed; about half a minute.
"""

import argparse
import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .accuracy import long_reference, ulps
from .needed import require
from .tables import Table


@dataclass(frozen=True)
class Scenario:
    """Logits, and a label for each row."""

    name: str
    logits: np.ndarray
    target: np.ndarray


def normal(name, rows, classes, dtype, *, spread=3.0, offset=0.0):
    rng = np.random.default_rng(classes)
    logits = (rng.normal(0, spread, (rows, classes)) + offset).astype(dtype)
    return Scenario(f"{name}, {np.dtype(dtype)}", logits, rng.integers(classes, size=rows))


def confident(name, margins, dtype, classes=10):
    """The label's logit is so far above the others, which are all 0."""
    logits = np.zeros((len(margins), classes), dtype)
    logits[:, 0] = margins
    return Scenario(f"{name}, {np.dtype(dtype)}", logits, np.zeros(len(margins), int))


def scenarios():
    from ml_dtypes import bfloat16

    single, double = np.float32, np.float64
    return [
        normal("N(0, 3), 10 classes", 2000, 10, single),
        normal("N(0, 3), 1000 classes", 100, 1000, single),
        normal("N(0, 3), 50257 classes", 4, 50257, single),
        normal("N(0, 3), 200000 classes", 2, 200_000, single),
        normal("N(0, 0.01), 1000 classes", 100, 1000, single, spread=0.01),
        normal("N(0, 100), 1000 classes", 100, 1000, single, spread=100),
        normal("N(10000, 3), 100 classes", 400, 100, single, offset=1e4),
        confident("margins 1 to 87", np.arange(1, 88), single),
        confident("margins 88 to 103", np.arange(88, 104), single),
        normal("N(0, 3), 1000 classes", 100, 1000, double),
        confident("margins 1 to 700", np.arange(1, 701), double),
        normal("N(0, 3), 1000 classes", 100, 1000, np.float16),
        normal("N(0, 3), 1000 classes", 100, 1000, bfloat16),
    ]


# ---- libraries: (logits, target) -> a loss for every row, the gradient of their sum


def xentropy(logits, target):
    import xentropy as xe

    return xe.cross_entropy_with_grad(logits, target, reduction="none")


def torch(logits, target):
    import torch

    if logits.dtype.name == "bfloat16":
        x = torch.from_numpy(logits.view(np.int16)).view(torch.bfloat16)
    else:
        x = torch.from_numpy(logits)
    x.requires_grad_()
    losses = torch.nn.functional.cross_entropy(x, torch.from_numpy(target), reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    return tuple(part.detach().double().numpy() for part in (losses, gradient))


def jax_optax(logits, target):
    import jax
    import optax

    jax.config.update("jax_enable_x64", logits.dtype == np.float64)

    def losses(x):
        return optax.softmax_cross_entropy_with_integer_labels(x, target)

    gradient = jax.jit(jax.grad(lambda x: losses(x).sum()))(logits)
    return np.asarray(jax.jit(losses)(logits)), np.asarray(gradient)


def scipy(logits, target):
    from scipy.special import log_softmax, softmax

    rows = np.arange(len(target))
    gradient = softmax(logits, axis=1)
    gradient[rows, target] -= 1
    return -log_softmax(logits, axis=1)[rows, target], gradient


def scikit_learn(logits, target):
    from sklearn._loss.loss import HalfMultinomialLoss

    if logits.dtype.itemsize == 2:
        return None
    half = HalfMultinomialLoss(n_classes=logits.shape[1])
    return half.loss_gradient(target.astype(logits.dtype), logits)


LIBRARIES = {
    "xentropy": xentropy,
    "torch": torch,
    "jax + optax": jax_optax,
    "scipy": scipy,
    "scikit-learn": scikit_learn,
}


# What each of them needs.
MODULES = {
    "xentropy": ["xentropy"],
    "torch": ["torch"],
    "jax + optax": ["jax", "optax"],
    "scipy": ["scipy"],
    "scikit-learn": ["sklearn"],
}


def installed():
    """The names of the libraries that are there."""
    return [n for n, needs in MODULES.items() if all(map(importlib.util.find_spec, needs))]


# ---- errors


def largest_errors(scenario, answer):
    """(of a loss, of an entry of the gradient), in units of the last place."""
    from xentropy import reference

    dtype = scenario.logits.dtype
    double = dtype == np.float64
    exact = (long_reference() if double else reference).cross_entropy_with_grad(
        scenario.logits, scenario.target, reduction="none"
    )
    losses = np.asarray(answer[0]).astype(np.float64 if double else np.float32)
    gradient = np.asarray(answer[1]).astype(dtype)
    return float(ulps(losses, exact[0]).max()), float(ulps(gradient, exact[1]).max())


def measure(libraries):
    """By scenario and library (loss, gradient), or None where it does not take such logits."""
    found = {}
    for scenario in scenarios():
        found[scenario.name] = {}
        for name in libraries:
            with np.errstate(all="ignore"):
                answer = LIBRARIES[name](scenario.logits.copy(), scenario.target)
                errors = None if answer is None else largest_errors(scenario, answer)
            found[scenario.name][name] = errors
    return found


def digits(error):
    return f"{error:.1f}" if error < 1000 else f"{error:.0e}".replace("e+0", "e")


def table(found):
    libraries = next(iter(found.values())).keys()
    rows = []
    for name, errors in found.items():
        cells = ["-" if e is None else f"{digits(e[0])} / {digits(e[1])}" for e in errors.values()]
        rows.append([name, *cells])
    return Table("exactness", ["largest error of loss / gradient, ulp", *libraries], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--libraries", nargs="+", default=installed(), choices=LIBRARIES)
    parser.add_argument("--output", type=Path, help="the same as JSON")
    chosen = parser.parse_args()
    require("ml_dtypes")
    for name in chosen.libraries:
        require(*MODULES[name], extra="bench,peers,torch")
    if absent := [name for name in LIBRARIES if name not in installed()]:
        print(f"Not installed, so not compared: {', '.join(absent)}.", file=sys.stderr)
    found = measure(chosen.libraries)
    table(found).show()
    if chosen.output:
        chosen.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
