"""Pictures of results: a library has one look in all of them, and no legend hides a point."""

import itertools

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pytest

from bench import confidence, plots
from bench.cells import Cell
from bench.peers import PEERS, US
from bench.results import CEILING, Measurement, Results

CELLS = ["4096x1000", "8192x1000", "2048x32000:float16"]


def results_of(*names, others=()):
    """All peers on some cells, with all curves."""
    header = {"cpu": "Abacus", "cores": 2, "tier": "beads", "threads": 2, "date": "2000-01-01"}
    found = Results(header, grid=list(CELLS))
    for cell, (place, name) in itertools.product(CELLS, enumerate((CEILING, *names))):
        for mode, threads in itertools.product(("loss", "fresh", "out", "copy", "read"), (1, 2)):
            seconds = [0.001 * (1 + place) * Cell.parse(cell).rows / threads]
            m = Measurement(cell, threads, name, mode, seconds, others=list(others))
            found.measurements.append(m)
    found.curves = {"classes": CELLS, "rows": CELLS, "threads": CELLS[:1]}
    exact = [confidence.exact(margin) for margin in confidence.MARGINS]
    found.confidence = {name: exact for name in names}
    return found


@pytest.fixture(params=[[US], [US, "torch", "scipy"], list(PEERS)], ids=len)
def figures(request):
    found = dict(plots.all_plots(plt, results_of(*request.param)))
    yield found
    plt.close("all")


def test_every_library_has_a_colour_and_a_marker_of_its_own():
    assert set(plots.LOOKS) == set(PEERS)
    for part in zip(*plots.LOOKS.values(), strict=True):
        assert len(set(part)) == len(PEERS)
    assert plots.OTHER not in plots.LOOKS.values()


def test_a_library_has_the_same_look_whoever_else_is_there(figures):
    for figure in figures.values():
        for axis in figure.axes:
            for line in axis.get_lines():
                if line.get_label() in PEERS:
                    look = line.get_color(), line.get_marker()
                    assert look == plots.LOOKS[line.get_label()]


def test_legends_are_beside_the_axes_and_within_the_picture(figures):
    for name, figure in figures.items():
        figure.canvas.draw()
        assert all(axis.get_legend() is None for axis in figure.axes), name
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert box.x0 >= 0, name
        assert box.x1 <= figure.bbox.width, name
        for axis in figure.axes:
            assert not box.overlaps(axis.get_tightbbox()), name


def test_a_picture_says_what_other_processes_took():
    quiet, loud = results_of(US, others=[0.1]), results_of(US, others=[1.3])
    assert "other processes" not in plots.subtitle(quiet)
    assert "other processes took 1.3 of 2 cores during these visits" in plots.subtitle(loud)
