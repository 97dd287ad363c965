"""Tables of results: made once, written as Markdown or printed by rich."""

import importlib.util
import math
import sys
from dataclasses import dataclass, field

from . import confidence, quiet
from .ceiling import OF_MODE
from .cells import FEW, MODES
from .peers import REFERENCE, US
from .results import CEILING, LEAST_BYTES

NONE = ""
LOST = "slower"  # marks a cell where a peer is ahead
EVEN = "~"  # before a ratio: the visits do not tell who is ahead
WRONG = "wrong!"
FRESH_ONLY = "Peers have no such mode: they are compared by loss + gradient with a fresh result."


@dataclass
class Table:
    """Text in rows and columns; the first column is a name, the others are numbers."""

    title: str
    columns: list
    rows: list
    notes: list = field(default_factory=list)

    def markdown(self):
        lines = [f"| {' | '.join(self.columns)} |"]
        lines.append("| --- |" + " ---: |" * (len(self.columns) - 1))
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join(lines + [f"\n{note}" for note in self.notes])

    def parts(self, width):
        """The numbers of the columns, so many at a time that a terminal has room for them."""
        lines = [self.columns, *self.rows]
        # Two signs of frame and space a column, and one in front.
        wide = [max(len(line[i]) for line in lines) + 3 for i in range(len(self.columns))]
        parts, room = [[]], 0
        for i in range(1, len(wide)):
            if parts[-1] and wide[i] > room:
                parts.append([])
            if not parts[-1]:
                room = width - 1 - wide[0]
            parts[-1].append(i)
            room -= wide[i]
        return [[0, *part] for part in parts]

    def print(self, console):
        """Print it in as many parts as the width asks for, the first column in each."""
        from rich.table import Table as RichTable

        title = self.title
        for part in self.parts(console.width):
            table = RichTable(title=title, title_justify="left", title_style="bold")
            for i in part:
                table.add_column(self.columns[i], justify="right" if i else "left")
            for row in self.rows:
                table.add_row(*(row[i] for i in part))
            console.print(table)
            title = None
        for note in self.notes:
            console.print(note, style="dim", highlight=False)
        console.print()

    def show(self):
        """Print it to a terminal in its width, or else as Markdown."""
        if sys.stdout.isatty() and importlib.util.find_spec("rich"):
            from rich.console import Console

            self.print(Console())
        else:
            print(self.markdown(), flush=True)


# ---- numbers as text


def number(value, digits=3):
    """So many significant digits, without an exponent where possible; empty for None."""
    if value is None or isinstance(value, str):  # quiet.UNKNOWN
        return value or NONE
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def duration(seconds):
    if seconds is None:
        return NONE
    units = {"s": 1, "ms": 1e-3, "us": 1e-6}
    unit = next((unit for unit, scale in units.items() if seconds >= scale), "us")
    return f"{number(seconds / units[unit])} {unit}"


def times(ratio):
    if ratio is None:
        return NONE
    return f"{number(ratio, 2)}x" + (f" {LOST}" if ratio < 1 else "")


def verdict(results, cell, mode):
    """The ratio to the best peer as text: marked as lost or even, UNKNOWN beside busy processes."""
    if results.find(cell, US, mode) is None or results.best_peer(cell, mode) is None:
        return NONE
    ratio = results.ratio(cell, mode)
    if ratio is None:
        return quiet.UNKNOWN
    return f"{EVEN}{number(ratio, 2)}x" if results.even(cell, mode) else times(ratio)


def share_of_ceiling(results, cell, mode):
    """In percent, as text."""
    if results.ceiling_disturbed(cell, mode):
        return quiet.UNKNOWN
    return percent(results.percent_of_ceiling(cell, mode))


def percent(value):
    return NONE if value is None else f"{value:.0f} %"


def memory(measurement, cell):
    if measurement is None or measurement.memory is None or cell.nbytes < LEAST_BYTES:
        return NONE
    return f"{measurement.memory:.2f}x"


def ulp(value):
    return NONE if value is None else number(value, 2)


# ---- tables


def mode_table(results, mode):
    """Ours in one mode, against the best peer and the ceiling."""
    columns = ["cell", "time", "+-", "Gel/s", "best peer", "ratio", f"% of {OF_MODE[mode]}"]
    columns += ["extra memory", "loss ulp", "grad ulp"]
    rows = []
    for cell in results.cells():
        m = results.find(cell, US, mode)
        if m is None:
            why = results.why_absent(cell, US)
            if why:
                rows.append([cell.name, why, *[NONE] * (len(columns) - 2)])
            continue
        best = results.best_peer(cell, mode)
        row = [cell.name, duration(results.seconds(cell, US, mode)), percent(100 * m.spread)]
        row += [number(results.speed(cell, US, mode)), best[0] if best else NONE]
        row += [verdict(results, cell, mode), share_of_ceiling(results, cell, mode)]
        row += [memory(m, cell)]
        row += [ulp(m.loss_ulp), ulp(m.grad_ulp) + (f" {WRONG}" if m.wrong else "")]
        rows.append(row)
    notes = [] if mode in ("loss", "fresh") else [FRESH_ONLY]
    notes += [*verdict_notes(results, [mode]), *noise_notes(results)]
    return Table(MODES[mode], columns, rows, notes)


def verdict_notes(results, modes):
    """How many cells were judged and lost, and why others were not judged."""
    notes = []
    for mode in modes:
        compared, mean = results.compared(mode), results.geometric_mean(mode)
        if not compared:
            continue
        judged = [cell for cell in compared if results.ratio(cell, mode)]
        even = sum(results.even(cell, mode) for cell in judged)
        text = f"{MODES[mode]}: {len(judged)} of {len(compared)} cells judged, "
        text += f"{len(results.lost(mode))} lost, {even} even ({EVEN})"
        notes.append(text + (f"; geometric mean of the ratios: {times(mean)}." if mean else "."))
    return notes + disturbance_notes(results, results.cells(), modes)


def disturbance_notes(results, cells, modes=("fresh",)):
    """Why there is no verdict on some of the cells."""
    others = [o for cell in cells for mode in modes for o in results.disturbed(cell, mode)]
    if not others:
        return []
    return [f"{quiet.UNKNOWN}: {quiet.no_conclusion(others, results.header['cores'])}."]


def noise_notes(results):
    """That a ceiling moved by more than 15 % within a cell, and where it moved most."""
    moved = {cell.name: results.noisy(cell) for cell in results.cells()}
    worst = {name: max(kinds.values()) for name, kinds in moved.items() if kinds}
    if not worst:
        return []
    name = max(worst, key=worst.get)
    text = f"The machine was noisy: in {len(worst)} of {len(moved)} cells a ceiling moved by more"
    return [f"{text} than 15 % between visits, most in {name} (by {100 * worst[name]:.0f} %)."]


def peers_table(results, mode, title, text):
    """Everybody side by side; `text(cell, measurement)` fills the cells."""
    names = results.peers()
    rows = []
    for cell in results.cells():
        row = [cell.name]
        for name in names:
            m = results.find(cell, name, mode)
            row.append(NONE if m is None else text(cell, m) + (f" {WRONG}" if m.wrong else ""))
        rows.append(row)
    used = [i for i in range(1, len(names) + 1) if any(row[i] for row in rows)]
    columns = ["cell"] + [names[i - 1] for i in used]
    return Table(title, columns, [[row[0]] + [row[i] for i in used] for row in rows])


def speeds_table(results, mode):
    table = peers_table(
        results,
        mode,
        f"{MODES[mode]}: Gel/s",
        lambda cell, m: number(results.speed(cell, m.peer, m.mode)),
    )
    ceilings = {cell.name: results.speed(cell, CEILING, OF_MODE[mode]) for cell in results.cells()}
    table.columns.append(f"ceiling ({OF_MODE[mode]})")
    for row in table.rows:
        row.append(number(ceilings[row[0]]))
    return table


def memory_table(results):
    return peers_table(
        results,
        "fresh",
        "loss + gradient: peak extra memory, as a multiple of the logits",
        lambda cell, m: memory(m, cell),
    )


def errors_table(results):
    return peers_table(
        results,
        "fresh",
        "loss + gradient: largest error of the loss and of the gradient in ulp",
        lambda cell, m: f"{ulp(m.loss_ulp)} / {ulp(m.grad_ulp)}",
    )


def ceilings_table(results):
    """What the machine moved in the same run, in GB/s."""
    kinds = list(dict.fromkeys(OF_MODE.values()))
    moves = {"read": 1, "copy": 2, "update": 2}
    counts = sorted({m.threads for m in results.measurements})
    columns = ["cell"] + [f"{kind}, {n} thread{'s'[: n > 1]}" for n in counts for kind in kinds]
    rows = []
    for cell in results.cells():
        row = [cell.name]
        for n in counts:
            for kind in kinds:
                seconds = results.seconds(cell, CEILING, kind, n)
                row.append(number(moves[kind] * cell.nbytes / seconds / 1e9) if seconds else NONE)
        if cell.nbytes >= LEAST_BYTES:
            rows.append(row)
    return Table("Ceilings: GB/s read and written", columns, rows, noise_notes(results))


def absent_table(results):
    return Table("Not measured", ["cell", "peer", "why"], [list(each) for each in results.absent])


def tails_table(results):
    """A confident and right prediction, as everybody answers it."""
    margin = confidence.TAIL
    columns = [f"float32 logits [{margin}, 0], target 0", "loss", "gradient at the target"]
    loss, gradient = confidence.exact(margin)
    rows = [["exact", f"{loss:.7g}", f"{gradient:.7g}"]]
    for name, answers in results.confidence.items():
        loss, gradient = answers[confidence.MARGINS.index(margin)]
        shown = NONE if gradient is None else f"{gradient + 0.0:.7g}"
        rows.append([name, f"{loss + 0.0:.7g}", shown])
    return Table("Exact tails", columns, rows)


def speed_table(results):
    """A few cells: the time that loss and gradient take everybody."""
    cells = [cell for cell in results.cells() if cell in FEW]
    names = [name for name in results.peers() if name != REFERENCE]
    names = [name for name in names if any(results.find(c, name, "fresh") for c in cells)]
    rows = []
    for cell in cells:
        seconds = [results.seconds(cell, name, "fresh") for name in names]
        rows.append([cell.name, *map(duration, seconds), verdict(results, cell, "fresh")])
    columns = ["logits", *names, "best of the others / xentropy"]
    return Table("Speed", columns, rows, disturbance_notes(results, cells))


def summary_table(results):
    """One row a cell: speed against the best peer and the ceiling, memory, error."""
    columns = ["cell"]
    shown = [mode for mode in MODES if any(results.find(c, US, mode) for c in results.cells())]
    columns += [MODES[mode].removeprefix("loss + ") for mode in shown]
    columns += ["extra memory, fresh", "grad ulp"]
    rows = []
    for cell in results.cells():
        row = [cell.name]
        for mode in shown:
            parts = [number(results.speed(cell, US, mode)), verdict(results, cell, mode)]
            parts.append(share_of_ceiling(results, cell, mode))
            row.append(", ".join(part for part in parts if part))
        m = results.find(cell, US, "fresh")
        row += [memory(m, cell), ulp(m.grad_ulp) if m else NONE]
        rows.append(row)
    means = [times(results.geometric_mean(mode)) for mode in shown]
    if all(means):
        rows.append(["geometric mean", *means, NONE, NONE])
    return Table("Summary", columns, rows, verdict_notes(results, shown) + noise_notes(results))


def all_tables(results):
    """Everything, in the order of the report."""
    measured = {m.mode for m in results.measurements if m.peer != CEILING}
    tables = [mode_table(results, mode) for mode in MODES if mode in measured]
    for mode in ("loss", "fresh"):
        if mode in measured:
            tables.append(speeds_table(results, mode))
    if "fresh" in measured:
        tables += [memory_table(results), errors_table(results)]
    tables.append(ceilings_table(results))
    if results.confidence:
        tables.append(tails_table(results))
    if results.absent:
        tables.append(absent_table(results))
    return [table for table in tables if table.rows and len(table.columns) > 1]
