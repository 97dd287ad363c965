"""Calibration and losses as a picture."""

from typing import Any

from .evaluate_run import Counted, Losses


def pyplot() -> Any:
    """Matplotlib, drawing to files."""
    try:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot
    except ImportError as error:
        raise ImportError(f"--plot needs matplotlib ({error}): pip install matplotlib") from error
    return matplotlib.pyplot


def draw(counted: Counted, path: str) -> None:
    """A reliability diagram beside a histogram of the losses."""
    plt = pyplot()
    result = counted.evaluation.result()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
    reliability(left, result)
    losses(right, counted.evaluation, result)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def reliability(axes: Any, result: Any) -> None:
    """Accuracy by confidence; the area of a point is the share of its rows."""
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="perfectly calibrated")
    found = [each for each in result.reliability if each.confidence is not None]
    share = [each.weight / result.weight for each in found]
    x, y = [each.confidence for each in found], [each.accuracy for each in found]
    axes.plot(x, y, color="C0", linewidth=1)
    axes.scatter(
        x, y, [20 + 300 * each for each in share], color="C0", clip_on=False, label="rows of a bin"
    )
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    axes.set(xlabel="largest probability", ylabel="accuracy")
    axes.set_title(f"calibration error {result.calibration_error:.4f}")
    axes.legend(frameon=False, markerscale=0.5)


def losses(axes: Any, counted: Losses, result: Any) -> None:
    """How the losses are distributed, and their mean."""
    edges = counted.edges
    axes.bar(edges[:-1], counted.counts, edges[1] - edges[0], align="edge", color="C0")
    axes.axvline(result.nats, color="C1", label=f"mean: {result.nats:.4f} nats")
    axes.set(xlabel=f"loss in nats (last bar: {edges[-1]:.1f} and more)", ylabel="rows")
    axes.set_title(f"perplexity {result.perplexity:,.2f}")
    axes.legend(frameon=False)
