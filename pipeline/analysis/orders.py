"""Rank correlations of the models of several lines, and how far they are from what chance gives."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np

from pipeline.analysis.cells import Floats, Outcome

EXACT, DRAWS = 8, 20_000  # models of a single line whose orders are all looked at; otherwise random orders
PERFECT = 0.99  # from here on the interval's approximation says more than the models do


@dataclass(frozen=True)
class Correlation:
    """A mean over lines; `half_width` is of its interval on Fisher's scale, atanh."""

    each: list[float]
    mean: float
    half_width: float
    for_: float
    against: float

    def outcome(self, other: str, for_: float, against: float, used: Any) -> Outcome:
        """The outcome of a test that looks at it, with the test's p values."""
        known = abs(self.mean) < PERFECT
        low, high = (
            math.tanh(math.atanh(self.mean) + side * self.half_width) if known else math.nan for side in (-1, 1)
        )
        what = f"rank correlation with {other}" + (f", mean of {len(self.each)} series" if len(self.each) > 1 else "")
        return Outcome(what, self.mean, low, high, for_, against, "orders of the models", used)


def correlation(lines: Sequence[tuple[Floats, Floats]], direction: str) -> Correlation:
    """Spearman's rank correlation averaged over lines, against all orders of each line's models.

    The interval is Bonett and Wright's (2000, Psychometrika 65), with the models of all lines.
    """
    each = [_spearman(x, y) for x, y in lines]
    sizes = tuple(sorted(len(x) for x, _ in lines))
    mean, null = float(np.mean(each)), _orders(sizes)
    own = 0 if len(sizes) == 1 and sizes[0] <= EXACT else 1  # random orders do not hold the one that was seen
    rises, falls = tail(null, mean, own)
    left = sum(sizes) - 3 * len(sizes)
    width = 1.96 * math.sqrt((1 + mean**2 / 2) / left) if left > 0 else math.nan
    return Correlation(each, mean, width, *((rises, falls) if direction == "rises" else (falls, rises)))


def tail(null: Floats, value: float, own: int) -> tuple[float, float]:
    """The shares of a null distribution that are as high, and as low, as a value; `own`: 1 if it has to be added."""
    high, low = np.count_nonzero(null >= value - 1e-9), np.count_nonzero(null <= value + 1e-9)
    return (high + own) / (len(null) + own), (low + own) / (len(null) + own)


@cache
def any_of_each(x: tuple[float, ...], places: tuple[tuple[float, ...], ...]) -> Floats:
    """Rank correlations of x (one value for each line) with the place of a model of each line, drawn at random."""
    rng = np.random.default_rng(0)
    drawn = np.stack([rng.choice(places_of_line, DRAWS) for places_of_line in places], axis=1)
    below = (drawn[:, :, None] > drawn[:, None, :]).sum(axis=2)
    equal = (drawn[:, :, None] == drawn[:, None, :]).sum(axis=2)
    ranks = below + (equal + 1) / 2 - (len(places) + 1) / 2
    own = _ranks(np.array(x)) - (len(x) + 1) / 2
    norm = np.sqrt((ranks**2).sum(axis=1) * float(own @ own))
    return np.divide(ranks @ own, norm, out=np.zeros(DRAWS), where=norm > 0)


def _spearman(x: Floats, y: Floats) -> float:
    x, y = (_ranks(values) - (len(x) + 1) / 2 for values in (x, y))
    norm = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / norm if norm else 0.0


def _ranks(values: Floats) -> Floats:
    """1 for the least; equal values share the mean of their ranks."""
    below = (values[:, None] > values).sum(axis=1)
    equal = (values[:, None] == values).sum(axis=1)
    ranks: Floats = below + (equal + 1) / 2
    return ranks


@cache
def _orders(sizes: tuple[int, ...]) -> Floats:
    """The mean rank correlations that orders without any relation give: all of them, or random ones."""
    rng = np.random.default_rng(0)
    total = np.zeros(1)
    for size in sizes:
        x = np.arange(size) - (size - 1) / 2
        if len(sizes) == 1 and size <= EXACT:
            orders = np.array(list(permutations(x)))
        else:
            orders = rng.permuted(np.tile(x, (DRAWS, 1)), axis=1)
        total = total + orders @ x / (x @ x)
    return total / len(sizes)
