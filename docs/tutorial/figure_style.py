"""What the tutorial's figures share: a colour for each quantity, a look for light and dark."""

from matplotlib import pyplot as plt

P = "#3585d6"  # p, the truth: data and targets
Q = "#e0781f"  # q, the model
H = "#2f9e6b"  # an entropy
KL = "#d9485f"  # a divergence
CE = "#8d6bd8"  # a cross entropy, or a loss
CLASSES = ["#4a9aa5", "#9a8a3c", "#b57a5e", "#8593a3"]  # where bars are told apart by class
INK = "#858585"  # text and axes: legible on white and on black


def axes(rows=1, height=3.0, **options):
    """Axes, one under the other, on the page's background, narrow enough for a phone."""
    spines = {"axes.spines.top": False, "axes.spines.right": False}
    inks = ["text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"]
    clear = dict.fromkeys(["figure.facecolor", "axes.facecolor", "savefig.facecolor"], "none")
    legend = {"legend.frameon": False, "axes.titlelocation": "left", "axes.titlesize": 11.5}
    plt.rcParams.update(dict.fromkeys(inks, INK) | clear | legend | spines)
    plt.rcParams.update({"font.size": 11.5, "lines.linewidth": 2.2, "svg.hashsalt": "xentropy"})
    return plt.subplots(rows, figsize=(4.9, height), layout="constrained", **options)[1]


def label(ax, x, y, text, colour, **options):
    """Text on the figure, in the colour of what it names."""
    ax.text(x, y, text, color=colour, **({"ha": "center", "va": "center"} | options))
