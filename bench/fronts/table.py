"""What a front's benchmark returns."""

from dataclasses import dataclass


@dataclass
class Table:
    """Rows of numbers with what they are."""

    name: str
    title: str
    columns: list[str]
    rows: list[list]
    notes: list[str]
