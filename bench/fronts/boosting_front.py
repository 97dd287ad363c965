"""xentropy.boosting against a NumPy objective as people write it, and the built-in ones.

    python -m bench.fronts --front boosting [--quick]

The ways take turns, a round each; medians. Calls of the objective alone, on logits in the layout
that each library hands over; then training, where the built-in objective is in it too.
"""

from functools import partial

import numpy as np

import xentropy as xe
from xentropy.boosting import multiclass_objective

from ..cells import Cell, make_logits, make_target
from ..quiet import UNKNOWN
from ..quiet import notes as no_conclusions
from ..stopwatch import seconds_in_turn
from .table import Table

CELLS = ("1797x10", "1000000x10", "200000x100")
QUICK = ("1797x10", "20000x10")
LAYOUTS = {"xgboost": (np.float32, "C"), "lightgbm": (np.float64, "F")}
TREES = {"xgboost": {"max_depth": 4}, "lightgbm": {"max_depth": 4, "num_leaves": 15}}


def in_numpy(kind):
    """Softmax, one-hot, p (1 - p): a custom objective as in most tutorials, without loops."""

    def objective(logits, data):
        labels = data.get_label().astype(int)
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
        classes = p.shape[1]
        factor = 2 if kind == "xgboost" else classes / (classes - 1)
        return p - np.eye(classes)[labels], np.maximum(factor * p * (1 - p), 1e-16)

    return objective


class Labels:
    """Labels as both libraries have them."""

    def __init__(self, labels):
        self.labels = labels.astype(np.float32)

    def get_label(self):
        return self.labels

    def get_weight(self):
        return None


def call_rows(quick):
    """Rows of times and ratios, and the Turns."""
    rows, turns = [], []
    for name in QUICK if quick else CELLS:
        cell = Cell.parse(name)
        data = Labels(make_target(cell))
        for kind, (dtype, order) in LAYOUTS.items():
            logits = np.asarray(make_logits(cell), dtype, order=order)
            objectives = {"ours": multiclass_objective(kind), "numpy": in_numpy(kind)}
            ways = {way: partial(f, logits, data) for way, f in objectives.items()}
            turns.append(seconds_in_turn(ways, 5 if quick else 15))
            milliseconds = [round(turns[-1].found[way] * 1e3, 3) for way in ("numpy", "ours")]
            rows.append([name, kind, *milliseconds, turns[-1].ratio("numpy", "ours")])
    return rows, turns


def datasets(quick):
    """Real rows, and many: the digits of scikit-learn, and noisy copies of them."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    yield "digits 1797x10", x, y
    if not quick:
        copies = np.tile(x, (20, 1)) + np.random.default_rng(0).normal(0, 2, (20 * len(x), 64))
        yield f"noisy digits {len(copies)}x10", copies, np.tile(y, 20)


def train_xgboost(x, y, objective, rounds):
    import xgboost

    data = xgboost.DMatrix(x, y)
    params = {"num_class": 10, "base_score": 0.5, **TREES["xgboost"]}
    params |= {} if objective else {"objective": "multi:softprob"}

    def train():
        booster = xgboost.train(params, data, rounds, obj=objective)
        return booster.predict(data, output_margin=True)

    return train


def train_lightgbm(x, y, objective, rounds):
    import lightgbm

    data = lightgbm.Dataset(x, y, free_raw_data=False).construct()
    params = {"num_class": 10, "verbosity": -1, "boost_from_average": False, **TREES["lightgbm"]}
    params["objective"] = objective or "multiclass"

    def train():
        return lightgbm.train(params, data, rounds).predict(x, raw_score=True)

    return train


def round_rows(quick):
    """Rows of times and losses, and the Turns."""
    rows, turns, rounds = [], [], 3 if quick else 10
    trainers = {"xgboost": train_xgboost, "lightgbm": train_lightgbm}
    for name, x, y in datasets(quick):
        for kind, make in trainers.items():
            objectives = {
                "built-in": None,
                "numpy": in_numpy(kind),
                "ours": multiclass_objective(kind),
            }
            ways = {way: make(x, y, objective, rounds) for way, objective in objectives.items()}
            turns.append(seconds_in_turn(ways, 1 if quick else 3))
            losses = [xe.cross_entropy(ways[way](), y) for way in ways]
            seconds = turns[-1].found
            milliseconds = [
                round(seconds[way] / rounds * 1e3, 3) if turns[-1].quiet else UNKNOWN
                for way in ways
            ]
            rows.append([name, kind, *milliseconds, *(round(loss, 7) for loss in losses)])
    return rows, turns


def tables(quick):
    """A call of the objective, and a round of training with it."""
    ways = "built-in", "numpy", "ours"
    calls = ["cell", "layout of", "numpy ms", "xentropy ms", "numpy / xentropy"]
    rounds = ["data", "library", *(f"{way} ms" for way in ways), *(f"{way} loss" for way in ways)]
    notes = ["a round: training and one prediction of all rows, over the number of rounds"]
    of_calls, call_turns = call_rows(quick)
    of_rounds, round_turns = round_rows(quick)
    notes += no_conclusions(round_turns)
    return [
        Table(
            "boosting_calls",
            "xentropy.boosting: a call",
            calls,
            of_calls,
            no_conclusions(call_turns),
        ),
        Table("boosting_rounds", "xentropy.boosting: a round", rounds, of_rounds, notes),
    ]
