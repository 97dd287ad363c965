"""Pictures of results."""

from . import confidence, quiet
from .ceiling import OF_MODE
from .cells import MODES, Cell
from .peers import REFERENCE, US
from .results import CEILING, LEAST_BYTES

# Colour and marker of each library in all pictures, whoever else is in them. The colours are those
# of Okabe and Ito, which the colour-blind can tell, but their yellow: it is too light for a line.
LOOKS = {
    US: ("#d55e00", "o"),
    "torch": ("#0072b2", "s"),
    "torch.compile": ("#56b4e9", "D"),
    "jax.jit + optax": ("#009e73", "^"),
    "onnxruntime": ("#cc79a7", "v"),
    "scikit-learn": ("#e69f00", "P"),
    "scipy": ("#6b4c9a", "X"),
    REFERENCE: ("#7f7f7f", "*"),
}
OTHER = ("#000000", "p")
OURS = LOOKS[US][0]
CEILING_LINE = dict(ls="-", color="black", lw=1, marker="|", ms=9)
EPSILON = 2.0**-24  # half a unit in the last place of 1 in float32
EXACT = 1e-10  # errors of 0 are drawn here


def style(results):
    """Colour and marker by peer: the same in all pictures."""
    looks = {name: LOOKS.get(name, OTHER) for name in results.peers()}
    return {
        name: dict(color=colour, marker=marker, zorder=5 if name == US else 2)
        for name, (colour, marker) in looks.items()
    }


def subtitle(results):
    """What it was measured on; and whether other processes took so much that it tells nothing."""
    header = results.header
    text = f"{header['cpu']}, {header['tier']}, {header['threads']} threads, {header['date']}"
    loud = [m for m in results.measurements if not m.judged(header["cores"])]
    if not loud:
        return text
    others = [other for m in loud for other in m.others]
    share = f"{len(loud)} of {len(results.measurements)} points"
    return f"{text}\n{share}: {quiet.no_conclusion(others, header['cores'])}"


def below(figure, axes):
    """One legend for all axes, under them, where it hides nothing."""
    entries = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    columns = min(len(entries), max(1, int(figure.get_figwidth() / 1.9)))
    height = (0.15 + 0.22 * -(-len(entries) // columns)) / figure.get_figheight()
    figure.legend(entries.values(), entries, loc="lower center", ncols=columns, frameon=False)
    figure.tight_layout(rect=(0, height, 1, 1))


def draw_points(axis, results, some, cells, name, mode, label, look):
    """Speeds on some of the cells, each at the height of its place among all."""
    found = [(results.speed(cell, name, mode), cells.index(cell)) for cell in some]
    found = [pair for pair in found if pair[0]]
    if found:
        axis.plot(*zip(*found, strict=True), label=label, **look)


def speeds(plt, results):
    """Every peer on every cell, and the ceiling as a line."""
    cells, modes = results.cells(), ("loss", "fresh", "out")
    looks = style(results)
    size = (5 * len(modes), 1.8 + 0.4 * len(cells))
    figure, axes = plt.subplots(1, len(modes), sharey=True, figsize=size, squeeze=False)
    places = range(len(cells))
    for axis, mode in zip(axes[0], modes, strict=True):
        large = [cell for cell in cells if cell.nbytes >= LEAST_BYTES]
        label = f"ceiling ({OF_MODE[mode]})"
        draw_points(axis, results, large, cells, CEILING, OF_MODE[mode], label, CEILING_LINE)
        for name, look in looks.items():
            theirs = mode if name == US or mode == "loss" else "fresh"
            draw_points(
                axis, results, cells, cells, name, theirs, name, dict(look, ls="none", ms=7)
            )
        axis.set(xscale="log", xlabel="1e9 elements (N x C) a second", title=MODES[mode])
        axis.grid(axis="both", alpha=0.3)
    axes[0][0].set_yticks(places, [cell.name for cell in cells])
    axes[0][0].invert_yaxis()
    figure.suptitle(f"Speed by cell: further right is faster\n{subtitle(results)}")
    below(figure, axes[0])
    return figure


def growth(plt, results, curve, size_of, label, title):
    """Time of a call against the size, log-log."""
    figure, axis = plt.subplots(figsize=(8, 5.5))
    cells = [Cell.parse(name) for name in results.curves[curve]]
    modes = [(name, "fresh", look) for name, look in style(results).items()]
    modes.append((US, "out", dict(color=OURS, marker="o", mfc="white", zorder=5)))
    for name, mode, look in modes:
        found = [(size_of(c), results.seconds(c, name, mode)) for c in cells]
        found = [pair for pair in found if pair[1]]
        if found:
            text = f"{name}, out=" if mode == "out" else name
            axis.plot(*zip(*found, strict=True), lw=1.2, ms=5, label=text, **look)
    axis.set(xscale="log", yscale="log", xlabel=label, ylabel="seconds a call")
    axis.set_title(f"{title}\n{subtitle(results)}", fontsize=10)
    axis.grid(which="major", alpha=0.3)
    below(figure, [axis])
    return figure


def scaling(plt, results):
    """Speed on n threads over speed on one."""
    cells = [Cell.parse(name) for name in results.curves["threads"]]
    counts = sorted({m.threads for m in results.measurements})
    figure, axes = plt.subplots(
        1, len(cells), sharey=True, figsize=(4 * len(cells), 4.6), squeeze=False
    )
    everybody = [(US, "out", "xentropy, out="), (CEILING, "copy", "ceiling (copy)")]
    everybody += [(name, "fresh", name) for name in results.peers()]
    looks = style(results)
    for axis, cell in zip(axes[0], cells, strict=True):
        axis.plot(counts, counts, ":", color="grey", label="ideal")
        for name, mode, text in everybody:
            one = results.seconds(cell, name, mode, 1)
            found = [(n, results.seconds(cell, name, mode, n)) for n in counts]
            found = [(n, one / seconds) for n, seconds in found if one and seconds]
            look = dict(looks.get(name, dict(color="black", marker="_")))
            if mode == "out":
                look["mfc"] = "white"
            if found:
                axis.plot(*zip(*found, strict=True), lw=1.2, ms=5, label=text, **look)
        axis.set(xlabel="threads", title=cell.name, xticks=counts)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("times as fast as one thread")
    figure.suptitle(f"Threads, loss + gradient\n{subtitle(results)}", fontsize=11)
    below(figure, axes[0])
    return figure


def confidence_errors(plt, results):
    """Relative error of the loss, and of the gradient at the target, against the loss."""
    figure, axes = plt.subplots(1, 2, sharey=True, figsize=(13, 5.5))
    losses = [confidence.exact(margin)[0] for margin in confidence.MARGINS]
    looks = style(results)
    for part, axis in enumerate(axes):
        for size, (name, answers) in enumerate(reversed(results.confidence.items())):
            errors = confidence.errors(answers, part)
            if errors is not None:
                drawn = [min(max(error, EXACT), 1e2) for error in errors]
                look = looks[name] | dict(lw=0.8, ms=9 - size, mfc="none")  # many coincide
                axis.plot(losses, drawn, label=name, **look)
        axis.axhline(EPSILON, color="grey", lw=0.8, ls="--")
        axis.set(xscale="log", yscale="log", xlabel="exact loss (nats)")
        axis.grid(alpha=0.3)
    axes[0].set(title="loss", ylabel="relative error (1: all digits are lost)")
    axes[1].set(title="gradient at the target")
    axes[0].text(losses[-1], EPSILON, " 2**-24: float32 rounding", va="bottom", fontsize=8)
    figure.suptitle(
        f"Error against confidence: float32 logits [m, 0], target 0\n{subtitle(results)}"
    )
    below(figure, axes)
    return figure


def all_plots(plt, results):
    """(name, figure) of every picture for which there are numbers."""
    if results.cells():
        yield "speed", speeds(plt, results)
    if "classes" in results.curves:
        yield (
            "classes",
            growth(
                plt,
                results,
                "classes",
                lambda cell: cell.classes,
                "classes C",
                "Cost against the number of classes: loss + gradient of 2,048 rows, float32",
            ),
        )
    if "rows" in results.curves:
        yield (
            "rows",
            growth(
                plt,
                results,
                "rows",
                lambda cell: cell.rows,
                "rows N",
                "Cost against the number of rows: loss + gradient of 1,000 classes, float32",
            ),
        )
    if "threads" in results.curves:
        yield "threads", scaling(plt, results)
    if results.confidence:
        yield "confidence", confidence_errors(plt, results)


def draw(results, folder, stem):
    """Write PNG files; returns their paths by name."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    paths = {}
    for name, figure in all_plots(plt, results):
        paths[name] = folder / f"{stem}-{name}.png"
        figure.savefig(paths[name], dpi=100)
        plt.close(figure)
    return paths
