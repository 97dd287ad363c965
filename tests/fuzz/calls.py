"""Random calls for the fuzzer: how their arguments are made, and made bad."""

import contextlib

import numpy as np

import xentropy as xe

from ..helpers.layouts import FILLER
from ..helpers.support import bfloat16

SMALL = 2000  # elements of most calls
FLOATS = [np.dtype(t) for t in ("f2", "f4", "f8", bfloat16)]
INTEGERS = [np.dtype(c) for c in "bhilBHIL"]
FUNCTIONS = ["cross_entropy_with_grad"] * 8 + ["cross_entropy"] * 4 + ["softmax", "log_softmax"] * 2
FUNCTIONS += ["logsumexp", "entropy", "kl_divergence", "row_statistics"] * 2 + ["set_num_threads"]
FUNCTIONS += ["selected_log_probs", "selected_log_probs_grad"] * 2
BAD_LABELS = {
    "i": [1, 2000, -1, 2**31, -(2**40), 2**63 - 1],
    "u": [0, 100, 156, 2**16 - 100, 2**32 - 100, 2**63, 2**64 - 100],
}
BAD_VALUES = [np.nan, np.inf, -np.inf, 1e38, 0, -1]
# What is rarely right.
ODDITIES = [
    None, True, False, 0, -1, 7, 2**31, 2**63, 2**64 - 100, -(2**70), 10**400, 0.0, 0.5, -2.5,
    np.nan, np.inf, -np.inf, 1e39, 1e-320, 1j, "mean", "1", b"1", "", [], (), {}, [[]], [1.0],
    [[1.0, 2.0], [3.0]], ["a"], [None], object(), range(3), slice(3), {1}, int, np.float32,
    np.bool_(True), np.float16(2), np.complex64(1), np.datetime64("2020-01-01"),
    np.timedelta64(1, "s"), np.array(None), np.array(1.5), np.array([True]),
    np.zeros(3, "f4,i4"), np.zeros(3, "S4"), np.zeros(0), np.zeros((0, 3)), np.ma.masked,
    np.ma.masked_array([1.0, 2.0], [0, 1]), np.array([1, "a", None], object), memoryview(b"abc"),
    (0, 0), (0, 1), ("a",), (1.5,), (0, 10**30), np.longdouble(1), np.uint64(2**64 - 1),
]  # fmt: skip


class Subclass(np.ndarray):
    """Could redefine anything."""


def writable(x):
    return isinstance(x, np.ndarray) and x.flags.writeable


class Maker:
    """Random values and arrays. It remembers the memory of the arrays, as it is before the call."""

    def __init__(self, seed, number):
        self.rng = np.random.default_rng([seed, number])
        self.held = []

    def chance(self, p):
        return self.rng.random() < p

    def pick(self, choices):
        return choices[self.rng.integers(len(choices))]

    def shape(self):
        """One to four dimensions, few elements, boundaries of vectors and blocks among them."""
        rng, limit = self.rng, SMALL
        if self.chance(0.03):
            limit = self.pick([70_000, 70_000, 300_000, 1_200_000])
        dims = [int(self.pick([1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 33, 64, 100, 257, 320, 321, 1025]))]
        for _ in range(self.pick([0, 1, 1, 1, 1, 2, 2, 3])):
            most = max(1, limit // int(np.prod(dims)))
            dims.append(int(np.exp(rng.uniform(0, np.log(most)))))
        if self.chance(0.02):
            dims[self.pick(range(len(dims)))] = 0
        return tuple(int(n) for n in rng.permutation(dims))

    def values(self, shape, dtype):
        """Logits: of one scale, or with an offset, or with special values in some places."""
        x = self.rng.normal(0, self.pick([0, 0.1, 1, 3, 3, 10, 30, 100]), shape)
        if self.chance(0.1):
            x = np.round(x) + self.pick([1e3, -1e3, 1e6, -1e6, 1e30, -1e30])
        for _ in range(self.pick([0, 0, 0, 1, 2])):
            most = {"float16": 65504, "float64": 1e150}.get(dtype.name, 3e38)
            special = self.pick([np.inf, -np.inf, -np.inf, np.nan, most, -most, 1e-45, -0.0, 80])
            x = np.where(self.rng.random(shape) < self.pick([0.001, 0.05, 0.9]), special, x)
        return np.asarray(x).astype(dtype)

    def placed(self, values, *, result=False):
        """The values in some memory: axes permuted, with steps or reversed, off every boundary."""
        values = np.asarray(values)
        if not result and values.ndim and values.size and self.chance(0.03):
            axis = self.pick(range(values.ndim))
            return np.broadcast_to(self.placed(values.take([0], axis), result=True), values.shape)
        dtype, order = values.dtype, np.arange(values.ndim)
        if dtype.kind in "fiu" and self.chance(0.1):
            dtype = dtype.newbyteorder()
        steps = np.ones(values.ndim, int)
        if self.chance(0.4):
            order = self.rng.permutation(order)
        if self.chance(0.2):
            steps = self.rng.choice([-3, -2, -1, 1, 1, 1, 2, 3], values.ndim)
        shape = tuple(int(n) for n in np.array(values.shape, int)[order] * np.abs(steps))
        n_bytes = int(np.prod(shape, dtype=int)) * dtype.itemsize
        offset = int(self.pick([0, 0, dtype.itemsize, 3 * dtype.itemsize, 1, 13]))
        raw = np.full(n_bytes + offset + 64, FILLER, np.uint8)
        view = raw[offset : offset + n_bytes].view(dtype).reshape(shape)
        view = view[(*(slice(None, None, int(s)) for s in steps), ...)].transpose(np.argsort(order))
        view[...] = values
        if not result and self.chance(0.05):
            view.flags.writeable = False
        self.held.append((raw, raw.tobytes(), view))
        return view

    def given(self, values):
        """An input: an array in some memory, or now and then a list."""
        short = 0 < np.size(values) < 100 and np.asarray(values).dtype.kind in "fiu"
        if short and self.chance(0.05):
            return values.tolist()
        return self.placed(values)


class Call(Maker):
    """One call: `name`, `arguments`, and which of them is `spoiled` (None: it is valid)."""

    def __init__(self, seed, number):
        super().__init__(seed, number)
        self.name, self.spoiled = self.pick(FUNCTIONS), None
        if self.name == "set_num_threads":
            self.arguments = {"n": self.pick([None, 1, 2, 3])}
        elif self.name == "row_statistics":
            self.arguments = self.statistics()
        elif self.name.startswith("selected"):
            self.arguments = self.selected()
        elif self.name.startswith("cross"):
            self.arguments = self.cross_entropy()
        else:
            self.arguments = self.softmax_family()
        if self.chance(0.5):
            self.spoil()

    def __str__(self):
        def said(value):
            if not isinstance(value, np.ndarray):
                return repr(value)[:200]
            flags = "" if value.flags.writeable else ", read-only"
            place = f"strides {value.strides}, at {value.ctypes.data % 64} of 64{flags}"
            return f"{value.dtype.str} {value.dtype.name} {value.shape}, {place}"

        return f"{self.name}(\n" + "".join(f"  {k}={said(v)},\n" for k, v in self.arguments.items())

    # ---- arguments

    def cross_entropy(self):
        shape = self.shape()
        axis = self.pick(range(-len(shape), len(shape)))
        dtype = self.pick(FLOATS)
        rows, classes = shape[: axis % len(shape)] + shape[axis % len(shape) + 1 :], shape[axis]
        if classes == 0:
            self.spoiled = "logits"
        values = self.values(shape, dtype)
        made = {"logits": self.given(values), "axis": axis, **self.numbers()}
        if len(shape) == 1 or axis == 1:
            made.pop("axis") if self.chance(0.5) else None
        ignored = made.get("ignore_index", -100)
        made["target"] = self.given(self.target(shape, rows, classes, ignored))
        if self.chance(0.3):  # exact in every type, so that divisors are
            made["weight"] = self.given(self.quarters(classes))
        if self.chance(0.3):
            made["sample_weight"] = self.given(self.quarters(rows))
        if self.name == "cross_entropy_with_grad":
            self.gradient(made, rows)
        return made

    def statistics(self):
        made = self.cross_entropy()
        names = ("logits", "target", "axis", "ignore_index", "logit_scale", "softcap", "n_threads")
        made = {name: made[name] for name in names if name in made}
        if np.asarray(made["target"]).dtype.kind not in "iu":
            made["target"] = None
        return made

    def selected(self):
        """One class a row or several, and for the gradient what the forward call returns."""
        made = self.statistics()
        shape = np.shape(made["logits"])
        axis = made.get("axis", min(1, len(shape) - 1))
        rows = np.delete(shape, axis)
        k = self.pick([None, None, 1, 2, 3])
        wanted = rows if k is None else np.insert(rows, axis % len(shape), k)
        labels = self.rng.integers(max(min(shape[axis], 100), 1), size=tuple(map(int, wanted)))
        ignored = made.get("ignore_index", -100)
        labels[self.rng.random(labels.shape) < self.pick([0, 0.1, 1])] = ignored
        made.pop("target")
        made["index"] = self.given(labels)
        if self.name == "selected_log_probs_grad":
            saved = [np.zeros(s) for s in (rows, labels.shape, rows)]
            if self.spoiled is None:
                found = xe.selected_log_probs(**made)
                saved = found.lse, found.log_prob, found.entropy
            for name, values in zip(("lse", "log_prob", "entropy"), saved, strict=True):
                made[name] = self.placed(values, result=True)  # never broadcast
            for name, shaped in (("grad_log_prob", labels.shape), ("grad_entropy", rows)):
                made[name] = self.given(np.asarray(self.rng.normal(size=shaped), self.pick(FLOATS)))
            self.place(made)
        return made

    def numbers(self):
        """Options that are a number or a name."""
        pools = {
            "ignore_index": [-100, 0, 3, 255, -1, 2**63 - 1, -(2**63)],
            "reduction": ["none", "sum", "mean"],
            "label_smoothing": [0, 0.0, 0.1, 0.5, 1.0, np.float32(0.25)],
            "z_loss": [0.0, 1e-4, 0.5, np.float64(1e-2)],
            "logit_scale": [1, 0.7, 0.25, 2.0, 1e-3, 1e-30, np.float32(0.1)],
            "softcap": [None, 30, 2.5, 0.1, 1e4, np.float32(50)],
            "base": [None, 2, 10.0, 1.0001, np.int8(2)],
            "n_threads": [None, 1, 2, 3, np.int64(5)],
        }
        made = {name: self.pick(pool) for name, pool in pools.items() if self.chance(0.25)}
        if made.get("softcap") is not None and made.get("logit_scale") == 1e-30:
            made["logit_scale"] = 1e-3  # softcap / logit_scale has limits too
        if made.get("reduction", "mean") == "mean" and self.chance(0.1):
            made["normalizer"] = self.pick([3, -7.5, 1e-3, np.float32(64)])
        return made

    def target(self, shape, rows, classes, ignored):
        if self.chance(0.3):
            t = self.rng.gamma(0.7, size=shape) * (self.rng.random(shape) < 0.8)
            t = np.where(self.rng.random(shape) < 0.002, np.nan, t) if self.chance(0.1) else t
            return np.asarray(t).astype(self.pick(FLOATS))
        dtype = self.pick(INTEGERS)
        most = np.iinfo(dtype)
        labels = self.rng.integers(min(max(classes, 1), int(most.max)), size=rows)
        labels = np.array(labels, dtype)
        if most.min <= ignored <= most.max:
            labels[self.rng.random(rows) < self.pick([0, 0.1, 1])] = ignored
        return labels

    def quarters(self, shape):
        kinds = [np.dtype("f2"), np.dtype("f4"), np.dtype("f8"), np.dtype("i4")]
        low = self.pick([1, 0, -4])
        return np.asarray(self.rng.integers(low, 12, shape) / 4).astype(self.pick(kinds))

    def gradient(self, made, rows):
        """grad_output and out."""
        if self.chance(0.25):
            upstream = self.pick([1.0, -0.25, 3, 1e-3, np.float32(2), 0.0, np.float64(1e10)])
            if made.get("reduction") == "none" and self.chance(0.7):
                upstream = np.asarray(self.rng.normal(size=rows)).astype(self.pick(FLOATS))
                upstream = self.given(upstream)
            made["grad_output"] = upstream
        self.place(made)

    def place(self, made):
        """out: some memory, or the logits."""
        logits = np.asarray(made["logits"])
        if self.chance(0.4):
            made["out"] = self.placed(self.values(logits.shape, logits.dtype), result=True)
        elif self.chance(0.2) and writable(made["logits"]):
            made["out"] = made["logits"]

    def softmax_family(self):
        shape, dtype = self.shape(), self.pick([*FLOATS, *FLOATS, *INTEGERS[:4]])
        if self.name == "kl_divergence":
            dtype = self.pick(FLOATS)
        values = self.values(shape, np.dtype("f4") if dtype.kind in "iu" else dtype)
        if dtype.kind in "iu":
            values = self.rng.integers(-100, 100, shape).astype(dtype)
        made = {"logits" if self.name in ("entropy", "kl_divergence") else "x": self.given(values)}
        axes = self.rng.permutation(len(shape))[: self.pick([1, 1, 1, 2, 3])]
        made["axis"] = tuple(int(a) for a in axes) if len(axes) > 1 else int(axes[0])
        if self.name == "kl_divergence":
            axis = made["axis"] = int(axes[0]) - self.pick([0, len(shape)])
            made["target"] = self.given(np.abs(self.target(shape, (), 1, 0)).astype("f4"))
            if np.ndim(made["target"]) != len(shape):
                made["target"] = self.given(self.rng.random(shape, "f4"))
            made["reduction"] = self.pick(["none", "sum", "mean"])
            self.spoiled = "logits" if shape[axis] == 0 else None
        elif self.name != "entropy" and self.chance(0.2):
            made["axis"] = None
        if self.name in ("entropy", "kl_divergence") and self.chance(0.3):
            made["base"] = self.pick([2, 10.0])
        if self.name == "logsumexp":
            made["keepdims"], made["return_sign"] = self.chance(0.5), self.chance(0.3)
            if self.chance(0.4):
                made["b"] = self.given(self.quarters(shape[self.pick([0, 0, -1, len(shape)]) :]))
        if self.name in ("softmax", "log_softmax") and dtype.kind not in "iu":
            x = np.asarray(made["x"])
            if self.chance(0.4):
                made["out"] = self.placed(np.zeros(x.shape, x.dtype), result=True)
            elif self.chance(0.2) and writable(made["x"]):
                made["out"] = made["x"]
        return made

    # ---- what makes them bad

    def spoil(self):
        name = self.spoiled = self.pick(list(self.arguments))
        value = self.arguments[name]
        self.arguments[name] = self.pick(ODDITIES)
        if isinstance(value, np.ndarray) and self.chance(0.8):
            with contextlib.suppress(TypeError):  # NumPy itself refuses
                self.arguments[name] = self.spoiled_array(name, value)

    def spoiled_array(self, name, a):
        """An array with a defect, or one that only looks like it."""
        if a.size and self.chance(0.4):
            values, bad = a.copy(), BAD_LABELS.get(a.dtype.kind, BAD_VALUES)
            with np.errstate(all="ignore"):
                at = self.rng.integers(a.size)
                values.reshape(-1)[at] = np.array(self.pick(bad)).astype(a.dtype).flat[0]
            return self.placed(values, result=name == "out")
        if name == "out" and self.chance(0.5):
            return self.spoiled_out(a)
        changes = [
            lambda: a.astype(self.pick([*"?bhilBHILefdgFDO", "S8", "U8", "M8[s]", "m8[s]"])),
            lambda: a[..., None],
            lambda: a[None],
            lambda: a.T,
            lambda: a[1:] if a.ndim else a,
            lambda: a[..., :-1] if a.ndim else a,
            lambda: a.reshape(-1),
            lambda: np.concatenate([a, a]) if a.ndim else a,
            lambda: a.view(Subclass),
            lambda: np.ma.masked_array(a),
            lambda: np.asmatrix(a) if a.ndim == 2 else a,
            lambda: np.stack([a, a], -1).astype("f4").view("f4,f4") if a.ndim else a,
            lambda: memoryview(a) if a.dtype.kind in "fiu" and a.dtype.isnative else a,
            lambda: list(a) if a.ndim else [a],
        ]
        with np.errstate(all="ignore"):
            return self.pick(changes)()

    def spoiled_out(self, a):
        """A place for the result that is not writable, or part of which is something else too."""
        out = a.view()
        if self.chance(0.3):
            out.flags.writeable = False
            return out
        if self.chance(0.3) and a.ndim and a.strides[0] % a.itemsize == 0:
            return np.lib.stride_tricks.as_strided(a, strides=(0, *a.strides[1:]))
        other = self.pick([a, *(v for v in self.arguments.values() if isinstance(v, np.ndarray))])
        raw = next((raw for raw, _, view in self.held if view is other), None)
        if raw is None or raw.size < a.nbytes:
            return out
        start = self.rng.integers(raw.size - a.nbytes + 1)
        return raw[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
