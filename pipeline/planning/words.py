"""Costs as people say them, and tables of them."""

from collections.abc import Iterable, Sequence

from rich.filesize import decimal
from tabulate import tabulate


def duration(seconds: float) -> str:
    """A time in one unit and two digits: "4.3 s", "12 min", "1.6 h", "3,100 days".

    Our own, because the libraries at hand (humanfriendly, by Snakemake) write "1 minute and 4.32 seconds".
    """
    unit, length = "days", 86_400
    for shorter, its_length in (("h", 3600), ("min", 60), ("s", 1)):
        if seconds < 100 * its_length:
            unit, length = shorter, its_length
    count = seconds / length
    return f"{count:.1f} {unit}" if 0 < count < 9.95 else f"{count:,.0f} {unit}"


def size(count: float) -> str:
    """Bytes: "12.3 kB", "1.5 GB"; "nothing" for none."""
    return decimal(int(count)) if count else "nothing"


def aligned(rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Lines of a table whose first row is the head; the columns `right` are aligned to the right.

    By tabulate and not by rich, which cuts or wraps cells to the width of the terminal, and to 80 columns in a pipe.
    """
    cells = [list(row) for row in rows]
    numbers = set(right)
    sides = ["right" if i in numbers else "left" for i in range(len(cells[0]))]
    text = tabulate(cells, tablefmt="plain", colalign=sides, disable_numparse=True)
    return [line.rstrip() for line in text.splitlines()]
