"""The calls of the fuzzer, carried out: their answers, and what they wrote."""

import contextlib
import copy

import numpy as np

import xentropy as xe
from xentropy import reference

from ..helpers.log_probs import tolerance
from ..helpers.support import (
    CAP_ULPS,
    OPTION_ROUNDINGS,
    SLOPE_ULPS,
    eps,
    error_scale,
    gradient_ulps,
    oracle,
    plain,
    spacing,
)
from .calls import Call

ERRORS = TypeError, ValueError, IndexError, MemoryError


class Wrong(Exception):
    """The package has broken a promise."""


class Trial(Call):
    """A call that is carried out once, and judged."""

    def run(self):
        self.kept = {k: copied(v) for k, v in self.arguments.items() if k != "out"}
        try:
            with np.errstate(all="raise"):
                self.alone = self.loss_alone()
                return getattr(xe, self.name)(**self.arguments)
        finally:
            if self.name == "set_num_threads":
                self.set = xe.get_num_threads()
            xe.set_num_threads(None)

    def loss_alone(self):
        """What `cross_entropy` says to the arguments that it shares with this call."""
        if self.name != "cross_entropy_with_grad":
            return None
        with contextlib.suppress(*ERRORS):
            shared = {k: v for k, v in self.arguments.items() if k not in ("grad_output", "out")}
            return xe.cross_entropy(**shared)

    def check_untouched(self, result):
        """Every byte is as before, but for the elements of `out` if the call has been accepted."""
        out = self.arguments.get("out") if result is not None else None
        for raw, before, _ in self.held:
            if raw.tobytes() == before:
                continue
            if out is None or not np.may_share_memory(raw, out):
                raise Wrong("memory was written that is no result of this call")
            written = np.array(out)
            now = raw.copy()
            raw[:] = np.frombuffer(before, np.uint8)
            old = np.array(out)
            raw[:] = now
            out[...] = old
            same = raw.tobytes() == before
            out[...] = written
            if not same:
                raise Wrong("memory beside `out` was written")

    def check_answer(self, result):
        if self.name == "set_num_threads":
            n = self.arguments["n"]
            if self.set != (xe.get_num_threads() if n is None else n):
                raise Wrong(f"{self.set} threads, not {n}")
            return
        arguments = {k: as_python(v) for k, v in self.kept.items() if k == "axis" or v is not None}
        arguments.pop("n_threads", None)
        if np.size(arguments.get("x", arguments.get("logits"))) == 0:
            return  # the reference has no maximum of nothing; test_softmax.py has the answers
        try:
            check = getattr(self, f"check_{self.name}")
            check(result, arguments)
        except Wrong:
            raise
        except Exception as error:
            raise Wrong(f"the reference does not take what the call took: {error!r}") from error

    def check_cross_entropy(self, result, arguments):
        if (expected := self.expected(arguments)) is not None:
            compare(result, expected[0], expected[2], "loss")

    def check_cross_entropy_with_grad(self, result, arguments):
        if (expected := self.expected(arguments)) is not None:
            compare(result[0], expected[0], expected[2], "loss")
            compare(result[1], expected[1], expected[3], "gradient")
        if (out := self.arguments.get("out")) is not None and result[1] is not out:
            raise Wrong("the gradient is not `out`")
        if not np.array_equal(self.alone, result[0], equal_nan=True):
            raise Wrong(f"the loss alone is {self.alone}, with the gradient {result[0]}")

    def expected(self, arguments):
        """Loss and gradient, and how far the call may be off; None if that is hard to say."""
        x = np.asarray(arguments["logits"])
        arguments = {**arguments, "logits": x}
        if x.ndim == 1:
            arguments["axis"] = 0
        scale = arguments.get("logit_scale", 1)
        most = np.max(np.abs(x), initial=0, where=np.isfinite(x)) * np.longdouble(scale)
        factors = [v for k, v in arguments.items() if k not in ("logits", "logit_scale")]
        if any(map(out_of_range, factors)) or (scale > 1 and most > 1e36):
            return None
        lifted = np.max(np.abs(arguments.get("grad_output", 0)), initial=0) > 1e12
        if lifted or arguments.get("z_loss", 0) > 1e3 or weightless(arguments):
            return None  # lifted: by them, probabilities that are below float32
        loss, grad = oracle(x.dtype.newbyteorder("=")).cross_entropy_with_grad(**arguments)
        scales = error_scale(**arguments)
        step = OPTION_ROUNDINGS * eps(x.dtype.newbyteorder("="))
        moved = 0.0
        if (cap := arguments.get("softcap")) is not None:
            moved = 2 * CAP_ULPS * eps(x.dtype.newbyteorder("=")) * float(min(cap, most))
            step += SLOPE_ULPS * eps(x.dtype.newbyteorder("=")) + moved
        rows = x.size // x.shape[arguments.get("axis", 1)]
        least = 0 if x.dtype.itemsize == 8 else rows * 1e-45  # of float32
        added = 0 if np.ndim(loss) else rows * 2.0**-53  # a rounding in float64 for each row
        step += added + float(2.0**-63 * most)  # long double rounds the scaled logits
        on_grad = step * scales[1] + flushed(x, scales[1])
        return loss, grad, step * scales[0] + moved + least, on_grad

    def check_softmax(self, result, arguments):
        x = as_float(arguments["x"])
        exact = self.reference_of(x, arguments)
        units = gradient_ulps(x.dtype.newbyteorder("="))
        compare(result, exact, units * spacing(exact, result.dtype), self.name)

    check_log_softmax = check_softmax

    def reference_of(self, x, arguments):
        options = {k: v for k, v in arguments.items() if k not in ("x", "logits")}
        return getattr(oracle(x.dtype.newbyteorder("=")), self.name)(x, **options)

    def check_logsumexp(self, result, arguments):
        x, b = as_float(arguments["x"]), np.asarray(arguments.get("b", 1.0))
        if "c" in (x.dtype.kind, b.dtype.kind) or b.size == 0:
            return  # test_logsumexp*.py have the answers
        wide, weights = x.astype(np.float64), np.abs(b.astype(np.float64))
        size = np.max(np.abs(wide), initial=0.0, where=np.isfinite(wide))
        size = size + np.max(np.abs(np.log(np.where(weights > 0, weights, 1.0))), initial=0.0)
        signed = arguments.pop("return_sign", False)
        width = np.asarray(result[0] if signed else result).dtype
        options = {**arguments, "x": x, "b": b}
        if x.ndim == b.ndim == 0:
            options["axis"] = None  # 0 and -1 are allowed
        exact, sign = oracle(width).logsumexp(**options, return_sign=True)
        terms = oracle(width).logsumexp(**{**options, "b": np.abs(b)})
        condition = np.where(terms == exact, 1.0, np.exp(terms - exact))
        if signed:
            result, its_sign = result
            compare(np.where(condition < 1e6, its_sign, sign), sign, 0, "sign")
        else:
            exact = np.where(sign < 0, np.nan, exact)
        # Where more cancels, noise is what the reference leaves.
        result = np.where(condition < 1e6, result, exact.astype(width)).astype(width)
        size = size + np.where(np.isfinite(condition), condition, 0)
        compare(result, exact, plain(width) * eps(width) * (np.abs(exact) + size), self.name)

    def check_entropy(self, result, arguments):
        x = as_float(arguments["logits"])
        exact = self.reference_of(x, arguments)
        units = 2 * plain(x.dtype) * spacing(exact, result.dtype)
        added = x.size * 2.0**-57  # equal terms, in 16 sums at least, are rounded alike
        compare(result, exact, units + added * np.abs(exact), self.name)

    def check_row_statistics(self, result, arguments):
        """Classes and infinities exactly; other numbers as near as the loss of a row may be."""
        x = np.asarray(arguments["logits"])
        if x.ndim == 1:
            arguments["axis"] = 0
        native, scale = x.dtype.newbyteorder("="), arguments.get("logit_scale", 1)
        most = float(np.max(np.abs(x), initial=0, where=np.isfinite(x))) * scale
        if out_of_range(scale) or out_of_range(arguments.get("softcap")) or most > 1e36:
            return
        exact = oracle(native).row_statistics(**arguments)
        step, moved = 2 * plain(native) * eps(native), 2.0**-52 * most
        if (cap := arguments.get("softcap")) is not None:
            moved = 4 * CAP_ULPS * eps(native) * float(min(cap, most))
        for name, value in result._asdict().items():
            if name in ("argmax", "rank") and cap is None and value is not None:
                if not np.array_equal(value, exact[name]):
                    raise Wrong(f"{name} is {value}, not {exact[name]}")
            elif name not in ("argmax", "rank") and value is not None:
                least = step * most if name == "lse" else 1e-37
                size = 1 + np.abs(exact[name]) if moved else 0
                allowed = step * np.abs(exact[name]) + moved * size + least
                compare(value, exact[name], allowed, name)

    def check_selected_log_probs(self, result, arguments):
        """As statistics of rows: numbers as near as the loss of a row may be."""
        x, scale = np.asarray(arguments["logits"]), arguments.get("logit_scale", 1)
        native = x.dtype.newbyteorder("=")
        most = float(np.max(np.abs(x), initial=0, where=np.isfinite(x))) * scale
        if out_of_range(scale) or out_of_range(arguments.get("softcap")) or most > 1e36:
            return
        exact = oracle(native).selected_log_probs(**arguments)
        step, moved = 2 * plain(native) * eps(native), 2.0**-52 * most
        if (cap := arguments.get("softcap")) is not None:
            moved = 4 * CAP_ULPS * eps(native) * float(min(cap, most))
        for name, value, of in zip(result._fields, result, exact, strict=True):
            least = step * most if name == "lse" else 1e-37
            size = 1 + np.abs(of) if moved else 0
            compare(value, of, step * (1 + np.abs(of)) + moved * size + least, name)

    def check_selected_log_probs_grad(self, result, arguments):
        x, scale = np.asarray(arguments["logits"]), arguments.get("logit_scale", 1)
        most = float(np.max(np.abs(x), initial=0, where=np.isfinite(x))) * scale
        if any(map(out_of_range, (scale, arguments.get("softcap")))) or most > 1e6:
            return  # the digits of p are those of a float64 lse
        if self.spoiled not in (None, "out", "n_threads"):
            return  # the saved numbers are those of other arguments
        names = ("axis", "ignore_index", "logit_scale", "softcap")
        options = {name: arguments[name] for name in names if name in arguments}
        index, g = np.asarray(arguments["index"]), arguments["grad_log_prob"]
        h = arguments.get("grad_entropy", 0.0)
        reference_of = oracle(x.dtype.newbyteorder("=")).selected_log_probs_grad
        exact = reference_of(x, index, g, h, **options)
        allowed = 2 * tolerance(x, index, g, h, exact, **options)
        compare(result, exact, allowed, self.name)

    def check_kl_divergence(self, result, arguments):
        x, t = (np.asarray(arguments[k]) for k in ("logits", "target"))
        if out_of_range(t):
            return
        options = {k: v for k, v in arguments.items() if k not in ("logits", "target")}
        axis = options["axis"] if x.ndim > 1 else 0
        exact = oracle(x.dtype.newbyteorder("=")).kl_divergence(t, x, **{**options, "axis": axis})
        wide = t.astype(np.float64)
        logs = np.abs(np.log(np.where(wide > 0, wide, 1)))
        terms = reference._times(wide, logs + np.abs(reference.log_softmax(x, axis))).sum(axis)
        terms = terms * reference._unit(options.get("base"))
        if options["reduction"] != "none":
            terms = terms.sum() / (terms.size if options["reduction"] == "mean" else 1)
        compare(result, exact, 2 * plain(x.dtype) * eps(x.dtype) * terms, self.name)


def copied(value):
    """The value of an argument, whatever the call does to the memory it is in."""
    if isinstance(value, np.ndarray | memoryview):
        return np.array(value)
    return copy.deepcopy(value) if isinstance(value, list) else value


def as_float(x):
    """An array as the softmax family takes it."""
    x = np.asarray(x)
    return x.astype(np.float64) if x.dtype.kind in "iub" else x


def weightless(arguments):
    """Is it a mean over a weight of 0? Then nan and infinities of either sign are right."""
    if arguments.get("reduction", "mean") != "mean" or "normalizer" in arguments:
        return False
    take = arguments.get
    axis = take("axis", 1)
    x, shape = reference._rows(arguments["logits"], axis)
    ignored = take("ignore_index", -100)
    mass = reference._target_mass(x, shape, take("target"), take("weight"), ignored, 0.0, axis)
    repeat = reference._per_row(take("sample_weight"), shape)
    return np.sum((repeat * mass[1])[mass[2]]) == 0


def flushed(x, scale):
    """Float32 exps below 2**-175 of their row's sum are 0 where a factor above 2**24 lifts them.

    The largest term of a gradient, which `scale` holds, has 1 / classes of the mass at least.
    """
    if np.asarray(x).dtype.itemsize == 8:
        return 0.0
    return 2.0**-174 * x.size * np.max(scale, initial=0, where=np.isfinite(scale))


def out_of_range(value):
    """Factors that float32 cannot hold? Their products may overflow, or vanish, early."""
    if not isinstance(value, int | float | list | np.ndarray):
        return False
    sizes = np.abs(np.asarray(value, np.longdouble))
    return bool(np.any((sizes != 0) & ~((sizes >= 1e-37) & (sizes <= 1e36)) & (sizes == sizes)))


def as_python(value):
    """NumPy's numbers as Python's, which do not make the reference compute in float32."""
    if isinstance(value, np.floating):
        return float(value)
    return value.item() if isinstance(value, np.integer) else value


def compare(actual, exact, allowed, what):
    """Equal (also two nans, or an overflow), or as near as allowed."""
    actual, exact = np.asarray(actual), np.asarray(exact)
    if actual.shape != exact.shape:
        raise Wrong(f"{what} has shape {actual.shape}, not {exact.shape}")
    native = actual.dtype.newbyteorder("=")
    a, e = actual.astype(np.longdouble), exact.astype(np.longdouble)
    rounded = exact.astype(native).astype(np.longdouble)
    same = (a == rounded) | (np.isnan(a) & np.isnan(e))
    near = np.abs(a - e) <= allowed + spacing(exact, native)
    most = 3e38 if native.kind == "V" else float(np.finfo(native).max)
    over = np.isinf(a) & (np.abs(e) + allowed > 0.999 * most)
    over &= (np.sign(a) == np.sign(e)) | (allowed > np.abs(e))
    fine = same | (near & np.isfinite(e)) | over
    if not fine.all():
        at = tuple(int(i) for i in np.argwhere(~fine)[0])
        allowed = np.broadcast_to(allowed, a.shape)[at]
        raise Wrong(f"{what}{list(at)} is {a[at]}, not {e[at]} +- {allowed}; {np.sum(~fine)} such")
