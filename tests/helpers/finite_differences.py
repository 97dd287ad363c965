"""Central differences: the slope of any loss, option by option."""

import numpy as np

from .support import make_logits, make_target

WEIGHT = np.array([0.5, 2.0, 0.0, 1.5, -0.25])
SAMPLE_WEIGHT = np.array([1.0, 0.0, 2.0, 0.5, 3.0, 1.0])
UPSTREAM = np.array([1.0, -2.0, 0.5, 0.0, 4.0, 1.0])

OPTIONS = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none", "grad_output": UPSTREAM},
    "weight": {"weight": WEIGHT},
    "sample_weight": {"sample_weight": SAMPLE_WEIGHT},
    "ignore_index": {"ignore_index": 3},
    "normalizer": {"normalizer": 2.5},
    "label_smoothing": {"label_smoothing": 0.3},
    "only smoothing": {"label_smoothing": 1.0},
    "z_loss": {"z_loss": 0.1},
    "logit_scale": {"logit_scale": 0.7},
    "softcap": {"softcap": 1.5},
    "axis": {"axis": 0},
    "base": {"base": 2},
    "grad_output": {"grad_output": -1.5},
    "everything": {
        "weight": WEIGHT,
        "sample_weight": SAMPLE_WEIGHT,
        "ignore_index": 3,
        "normalizer": 2.5,
        "label_smoothing": 0.3,
        "z_loss": 0.1,
        "logit_scale": 0.7,
        "softcap": 1.5,
        "axis": 0,
        "base": 10,
        "grad_output": 3.0,
    },
}
STEP = 1e-4


def problem(kind, options, rows=6, classes=5):
    """float64 logits, target, a copy of the options, and the error of a central difference.

    Its error is STEP**2 / 6 times the third derivative (below 10 for these options), plus
    the rounding of the loss (below 100 with z_loss) divided by STEP.
    """
    axis = options.get("axis", 1)
    shape = (rows, classes) if axis == 1 else (classes, rows)
    x = make_logits(shape, "float64", spread=1.5)
    target = make_target(kind, shape, axis, dtype="float64")
    tolerance = 10 * STEP**2 / 6 + 100 * 2.0**-52 / STEP
    return x, target, dict(options), tolerance


def slopes(loss, x, target, upstream, options):
    """d (upstream * loss) / d x, one logit at a time."""
    upstream = 1.0 if upstream is None else upstream
    grad = np.empty_like(x)
    for at in np.ndindex(x.shape):
        low, high = x.copy(), x.copy()
        low[at] -= STEP
        high[at] += STEP
        step = high[at] - low[at]
        rise = loss(high, target, **options) - loss(low, target, **options)
        grad[at] = np.sum(upstream * rise) / step
    return grad
