"""Would it pay to leave small entries of the gradient out of its two matrix products?

    python -m bench.studies.thin_products [--steps 600] [--quick]

Of the three products of a linear cross entropy the logits are always whole. From the other two,
the gradient of the logits G times something, entries p below a bound can be left out:

* skip_below: classes that have no entry above the bound in any row of the chunk are left out. What
  is skipped is the tail of each row, always on one side.
* sparse_tail: an entry p below the bound is kept with probability p / bound, as the bound. That
  is exact in expectation. The random bits are those of a counter (Philox, of seed and row), so
  that any split of the rows gives the same. The products are sparse: scipy.sparse.

Asked on the gradient of a small language model in training: what is left, the errors, the processor
time of a step on one thread, and how a model learns from it. The layers that are timed are wider
than the model, with the same G: its entries decide what is left.
"""

import argparse
import itertools
import time
from functools import partial

import numpy as np
import torch
from scipy import sparse

import xentropy as xe

from ..fronts.language_model import Model, Training, numbered, words_of_the_library
from ..needed import require
from ..tables import Table, number

BOUNDS = (10, 12, 16)  # minus their logarithms to base 2
WIDTHS = (768, 2048)  # of the layers that are timed
DRAWS = 16
# words, width of the model, layers, rows, words a row, steps before and of the curves, files
FULL = 50_000, 96, 2, 4, 128, 600, None
QUICK = 2_000, 32, 1, 2, 32, 4, 40
HELD_OUT = 8  # batches that no run has seen


def exact(g, x, w, y):
    """Both products of G, whole."""
    return g @ w, g.T @ x


def needed_classes(g, y, bound):
    """The classes with an entry above the bound in some row, and the labels."""
    needed = g.max(axis=0) >= bound / len(g)
    needed[y] = True
    return np.flatnonzero(needed)


def skip_below(g, x, w, y, bound):
    """The products over the classes that some row needs."""
    classes = needed_classes(g, y, bound)
    thin, of_weight = g[:, classes], np.zeros_like(w)
    of_weight[classes] = thin.T @ x
    return thin @ w[classes], of_weight


def sparse_slopes(g, bound, seed):
    """G with its small entries at random: kept with probability p / bound, as the bound."""
    limit, rows = np.float32(bound / len(g)), []
    for row, slopes in enumerate(g):
        random = np.random.Generator(np.random.Philox(key=[seed, row]))
        kept = (random.random(len(slopes), np.float32) * limit < slopes) | (slopes < 0)
        classes = np.flatnonzero(kept)
        values = slopes[classes]
        rows.append((classes, np.where(values < 0, values, np.maximum(values, limit))))
    starts = np.cumsum([0, *(len(classes) for classes, _ in rows)])
    classes, values = (np.concatenate(each) for each in zip(*rows, strict=True))
    return sparse.csr_array((values, classes, starts), g.shape)


def sparse_tail(g, x, w, y, bound, seed):
    """The products of the sparse G."""
    slopes = sparse_slopes(g, bound, seed)
    return slopes @ w, slopes.T @ x


def sparse_tails(bound):
    """sparse_tail with other random bits in each call, as a training needs them."""
    seeds = itertools.count()
    return lambda g, x, w, y: sparse_tail(g, x, w, y, bound, next(seeds))


class Loss(torch.autograd.Function):
    """The mean loss of a linear layer, with the gradients of a method."""

    @staticmethod
    def forward(ctx, hidden, weight, labels, method):
        x, w, y = hidden.detach().numpy(), weight.detach().numpy(), labels.numpy()
        loss, g = xe.cross_entropy_with_grad(x @ w.T, y)
        ctx.gradients = [torch.from_numpy(np.asarray(each)) for each in method(g, x, w, y)]
        return hidden.new_tensor(loss)

    @staticmethod
    def backward(ctx, upstream):
        of_input, of_weight = ctx.gradients
        return of_input * upstream, of_weight * upstream, None, None


class Headless(Model):
    """The hidden states of the model, in place of logits."""

    def forward(self, x):
        hidden = self.layers(self.words(x) + self.places, mask=self.mask, is_causal=True)
        return self.norm(hidden).flatten(0, 1)


def training(method, text, classes, setting, seed=1):
    """The Training of a new model by gradients of the method."""
    _, width, layers, rows, length, _, _ = setting

    def loss_of(model, cut):
        return Loss.apply(model(cut[:, :-1]), model.words.weight, cut[:, 1:].flatten(), method)

    torch.manual_seed(0)
    run = Training(Headless(classes, width, layers, length), loss_of, text, rows, length)
    run.batches.manual_seed(seed)
    return run


def held_out_loss(run, text):
    """The loss on batches of text that no run has seen."""
    length = run.length
    at = torch.linspace(0, len(text) - length - 1, HELD_OUT * run.rows).long()[:, None]
    cuts = text[at + torch.arange(length + 1)].split(run.rows)
    with torch.no_grad():
        return sum(run.loss_of(run.model, cut).item() for cut in cuts) / len(cuts)


def layer_of(run, text):
    """Hidden states, weight, labels of a batch that the run has not seen."""
    at = torch.linspace(0, len(text) - run.length - 1, run.rows).long()[:, None]
    cut = text[at + torch.arange(run.length + 1)]
    with torch.no_grad():
        hidden = run.model(cut[:, :-1])
    return hidden.numpy(), run.model.words.weight.detach().numpy(), cut[:, 1:].flatten().numpy()


def distance(found, truth):
    """The length of the difference over that of the truth, for each gradient."""
    pairs = zip(found, truth, strict=True)
    return [float(np.linalg.norm(f - t) / np.linalg.norm(t)) for f, t in pairs]


def share_skipped(g, y, bound):
    """Shares: of classes that stay, of probability that is skipped (mean, worst row)."""
    classes = needed_classes(g, y, bound)
    skipped = np.delete(g, classes, axis=1).sum(axis=1, dtype=np.float64) * len(g)
    return len(classes) / g.shape[1], skipped.mean(), skipped.max()


def errors_table(x, w, y):
    """What each method leaves, and how far its gradients are from the exact ones."""
    _, g = xe.cross_entropy_with_grad(x @ w.T, y)
    truth, rows = exact(g, x, w, y), []
    for k in BOUNDS:
        bound = 2.0**-k
        stay, mean, worst = share_skipped(g, y, bound)
        skipped = f"{100 * mean:.2g} %, {100 * worst:.2g} %"
        errors = map(number, distance(skip_below(g, x, w, y, bound), truth))
        row = [f"skip_below 2^-{k}", f"{100 * stay:.2g} %", skipped, *errors, ""]
        rows.append([*row, f"{3 / (1 + 2 * stay):.1f}x"])
        draws = [sparse_tail(g, x, w, y, bound, seed) for seed in range(DRAWS)]
        mean_draw = [sum(each) / DRAWS for each in zip(*draws, strict=True)]
        of_mean = distance(mean_draw, truth)
        stay = sparse_slopes(g, bound, 0).nnz / g.size
        row = [f"sparse_tail 2^-{k}", f"{100 * stay:.2g} %", "0 expected"]
        row += [
            *map(number, distance(draws[0], truth)),
            number(of_mean[1]),
            f"{3 / (1 + 2 * stay):.1f}x",
        ]
        rows.append(row)
    columns = ["method", "stays", "skipped: mean, worst row", "error, input", "error, weight"]
    columns += [f"of the mean of {DRAWS}", "best possible"]
    note = (
        "stays: classes, or entries. Errors: length of the difference over that of the gradient; "
        f"without bias that of a mean of {DRAWS} is {DRAWS**-0.5:.2g} of one's (weight). best "
        "possible: three products over one and two thin ones, by operations alone."
    )
    return Table(f"Gradients of {len(x)} rows, {len(w):,} classes", columns, rows, [note])


def processor_ms(functions, rounds):
    """Least processor time of each function, which take turns."""
    taken = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.process_time()
            function()
            taken[name].append(1e3 * (time.process_time() - start))
    return {name: min(times) for name, times in taken.items()}


def times_table(x, w, y, rounds):
    """A step's parts in wide layers, with G of the model."""
    z = x @ w.T
    _, g = xe.cross_entropy_with_grad(z, y)
    out, rng, rows = np.empty_like(g), np.random.default_rng(0), []
    for width in WIDTHS:
        wide_x = rng.standard_normal((len(x), width), np.float32)
        wide_w = rng.standard_normal((len(w), width), np.float32)
        layer = wide_x, wide_w, y
        methods = {"exact": partial(exact, g, *layer)}
        for k in BOUNDS:
            methods[f"skip_below 2^-{k}"] = partial(skip_below, g, *layer, 2.0**-k)
            methods[f"sparse_tail 2^-{k}"] = partial(sparse_tail, g, *layer, 2.0**-k, 0)
        parts = {"logits": partial(np.matmul, wide_x, wide_w.T, out)}
        parts["loss"] = partial(xe.cross_entropy_with_grad, z, y)
        found = processor_ms(parts | methods, rounds)
        both = found["logits"] + found["loss"]
        for name in methods:
            step = both + found[name]
            ratio = (both + found["exact"]) / step
            row = [f"{width}, {name}", *map(number, (found["logits"], found["loss"], found[name]))]
            rows.append([*row, number(step), f"{ratio:.2f}x"])
    columns = ["width, method", "logits", "loss", "both products", "step", "exact / this"]
    return Table("Processor time on one thread, ms", columns, rows)


def curves_table(text, classes, setting):
    """How a model learns from each; twice exact, with other batches, for the scale."""
    ahead, held_out = text[: 9 * len(text) // 10], text[9 * len(text) // 10 :]
    methods = {"exact": (exact, 1)}
    for k in BOUNDS[:2]:
        methods[f"sparse_tail 2^-{k}"] = sparse_tails(2.0**-k), 1
    for k in BOUNDS[:0:-1]:
        methods[f"skip_below 2^-{k}"] = partial(skip_below, bound=2.0**-k), 1
    methods["exact, other batches"] = exact, 2
    runs, rows, plain = {}, [], None
    for name, (method, seed) in methods.items():
        run = runs[name] = training(method, ahead, classes, setting, seed)
        for _ in range(setting[-2]):
            run.step()
        curve = np.array(run.curve)
        plain = curve if plain is None else plain
        late = slice(2 * len(curve) // 3, None)
        apart = f"{(curve - plain)[late].mean():+.3g}" if seed == 1 else ""
        row = [name, f"{curve[0]:.4f}", f"{curve[late].mean():.4f}", apart]
        rows.append([*row, f"{held_out_loss(run, held_out):.4f}"])
        print(*rows[-1], flush=True)
    columns = ["gradients", "first loss", "last third", "less that of exact", "held out"]
    title = f"Losses of {setting[-2]} steps of AdamW"
    return Table(title, columns, rows), layer_of(runs["exact"], held_out)


def main(words=None):
    """Train, look at the gradients of the model that came out, time."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model and few steps")
    parser.add_argument("--steps", type=int, help="of each run of training (default 600)")
    chosen = parser.parse_args(words)
    setting = list(QUICK if chosen.quick else FULL)
    setting[-2] = chosen.steps or setting[-2]
    require("threadpoolctl", "scipy", "torch")
    from threadpoolctl import threadpool_limits

    text, classes = numbered(words_of_the_library(setting[-1]), setting[0])
    torch.set_num_threads(1)
    xe.set_num_threads(1)
    with threadpool_limits(1):
        curves, layer = curves_table(text, classes, setting)
        for table in (curves, errors_table(*layer), times_table(*layer, 1 if chosen.quick else 3)):
            print(f"\n{table.title}\n")
            table.show()


if __name__ == "__main__":
    main()
