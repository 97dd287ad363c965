"""Text in the width of the terminal, and progress: a bar by rich where it is installed."""

import shutil
import sys
import textwrap
import time
from typing import Any, TextIO

LEAST_WIDTH = 20


def width() -> int:
    """Columns of the terminal, or of COLUMNS."""
    return max(LEAST_WIDTH, shutil.get_terminal_size().columns)


def wrapped(text: str) -> str:
    """The lines of a text, broken where the terminal ends."""
    lines = []
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        lines += textwrap.wrap(line, width(), subsequent_indent=indent) or [""]
    return "\n".join(lines)


def say(text: str) -> None:
    """Print a text in the width of the terminal."""
    print(wrapped(text), flush=True)


def rich_bar(stream: TextIO) -> Any:
    """A progress bar with one task; None without rich."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
    except ImportError:
        return None
    text = TextColumn("{task.description}", markup=False)
    return Progress(BarColumn(10), text, console=Console(file=stream), transient=True)


class Progress:
    """A line that changes on a terminal; elsewhere a plain line every five seconds."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stdout if stream is None else stream
        self.live = self.stream is not None and self.stream.isatty()
        self.bar = rich_bar(self.stream) if self.live else None
        self.begun = self.last = time.perf_counter()

    def __enter__(self) -> "Progress":
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task("", total=1.0)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif self.live:
            self._over("")

    def _over(self, line: str, end: str = "") -> None:
        """Write over the line that the cursor is in, which stays one line."""
        room = width() - 1
        print(f"\r{line[:room]:<{room}}\r{line[:room]}", end=end, file=self.stream, flush=True)

    def show(self, share: float, text: str) -> None:
        """Show that a share of the work is done, if it is time."""
        now = time.perf_counter()
        if now - self.last < (0.1 if self.live else 5.0):
            return
        self.last = now
        line = f"  {now - self.begun:5.1f} s  {text}"
        if self.bar is not None:
            self.bar.update(self.task, completed=share, description=line.strip())
        elif self.live:
            self._over(line)
        else:
            say(line)

    def done(self, text: str) -> None:
        """A line that stays."""
        line = f"  {time.perf_counter() - self.begun:5.1f} s  {text}"
        if self.bar is not None:
            self.bar.console.print(wrapped(line), highlight=False, markup=False, soft_wrap=True)
        elif self.live:
            self._over("")
            say(line)
        else:
            say(line)
