"""The answer of a run in two sentences: what more experts change, and what more active parameters change.

Each number is a mean over the seeds. With several seeds a change is estimated in each of them, and the interval is that
of Student's t over the seeds (95 %): they are what would differ if the run were made again. With one seed the interval
is made of the standard errors over test items, and says so.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from pipeline.analysis.metrics import MEMORISATION, REASONING, Key, family, kind, primary
from pipeline.dag.stages import BASE

LEVEL = 0.95
BETTER, WORSE, UNDECIDED = "better", "worse", "not beyond noise"
# What the numbers of a family are called, and their unit.
WORDS = {
    (MEMORISATION, "bits"): ("stored facts", "bits"),
    (MEMORISATION, "accuracy"): ("accuracy on memorisation", ""),
    (MEMORISATION, "loss"): ("loss on memorised answers", "nats per token"),
    (REASONING, "loss"): ("loss on held-out reasoning", "nats per token"),
    (REASONING, "accuracy"): ("accuracy on reasoning", ""),
}
ORDER = {MEMORISATION: ("bits", "accuracy", "loss"), REASONING: ("loss", "accuracy")}


@dataclass(frozen=True)
class Change:
    """How one number of the models changes along a path.

    Attributes:
        what: the number, for a reader ("stored facts").
        first, last: its mean over seeds at the two ends of the path.
        change: from the first to the last, or for each step of the path, with its interval.
        good: whether a positive change is an improvement.
    """

    what: str
    unit: str
    first: float
    last: float
    change: float
    low: float
    high: float
    good: bool
    seeds: int

    @property
    def verdict(self) -> str:
        """Better, worse, or not told from noise: whether the interval is on one side of zero."""
        # What is as small as rounding is no change, however well the seeds agree on it.
        if not (self.low > 0 or self.high < 0) or abs(self.change) < 1e-9 * max(abs(self.first), abs(self.last)):
            return UNDECIDED
        return BETTER if (self.low > 0) == self.good else WORSE

    def text(self, each: str = "") -> str:
        """`stored facts go from 7.1 to 16.5 bits (+2.3, 95 % interval +1.9 to +2.8, with each doubling)`."""
        places = _decimals(self.low, self.high, self.change)
        numbers = [f"{value:+.{places}f}" for value in (self.change, self.low, self.high)]
        interval = f"95 % interval {numbers[1]} to {numbers[2]}" if math.isfinite(self.low) else "no interval"
        unit = f" {self.unit}" if self.unit else ""
        ends = f"{self.first:.{places}f} to {self.last:.{places}f}"
        return f"{self.what} from {ends}{unit} ({numbers[0]}{each}, {interval}): {self.verdict}"


@dataclass(frozen=True)
class Answer:
    """Sentences for the head of a page, and the models they are about."""

    question: str
    sentences: list[str]
    note: str


def answer(results: pd.DataFrame) -> Answer:
    """What the tidy table of a scale says to the question of the paper; with no comparison, that it says nothing."""
    base = results[results["variant"] == BASE].dropna(subset=["value"])
    sentences, seeds = [], set()
    for make in (_more_experts, _more_active):
        if changes := list(make(base)):
            path, each, found = changes[0][0], changes[0][1], [change for _, _, change in changes]
            sentences.append(f"{path}: " + "; ".join(change.text(each) for change in found) + ".")
            seeds |= {change.seeds for change in found}
    if not sentences:
        return Answer(QUESTION, ["This run has no two models to compare."], "")
    if seeds == {1}:
        note = "One seed: intervals are over test items, and do not know how much training runs differ."
    else:
        note = f"{max(seeds)} seeds, each a block of its own: intervals are Student's t over seeds."
    return Answer(QUESTION, sentences, note)


QUESTION = (
    "Does a sparser model, with more experts at the same active compute, remember more, and does it reason better?"
)


def main_numbers(results: pd.DataFrame) -> list[tuple[Key, str, str, bool]]:
    """The number that stands for memorisation and the one for reasoning: key, name, unit, whether more is better."""
    numbers = []
    for side, measures in ORDER.items():
        for measure in measures:
            keys = [key for key in primary(results, measure) if kind(key.task) == side]
            if keys:
                numbers.append((keys[0], *WORDS[side, measure], family(keys[0].stage, keys[0].metric) != "loss"))
                break
    return numbers


def _more_experts(base: pd.DataFrame) -> Iterable[tuple[str, str, Change]]:
    """Along the series with the most sizes: the slope on log2 E."""
    models = base.drop_duplicates("point")
    sizes = models.groupby("series")["experts"].nunique()
    if not len(sizes) or sizes.max() < 2:
        return
    longest = models[models["series"].isin(sizes[sizes == sizes.max()].index)]
    series = longest.sort_values("active_params")["series"].iloc[0]
    rows = base[base["series"] == series]
    ends = rows["experts"].min(), rows["experts"].max()
    path = f"More experts at equal active parameters ({series}, E {ends[0]} to {ends[1]})"
    each = " with each doubling" if sizes.max() > 2 else ""
    for key, name, unit, good in main_numbers(rows):
        frame = key.rows(rows).assign(x=lambda part: np.log2(part["experts"]))
        if change := _change(frame, name, unit, good, slope=sizes.max() > 2):
            yield path, each, change


def _more_active(base: pd.DataFrame) -> Iterable[tuple[str, str, Change]]:
    """At the most experts that were trained with several top-k: the largest top-k against the smallest."""
    models = base.drop_duplicates("point").assign(recipe=lambda m: m["series"].str.replace(r"-k\d+", "", regex=True))
    several = models.groupby(["recipe", "hidden", "experts"])["topk"].nunique()
    several = several[several > 1]
    if not len(several):
        return
    recipe, hidden, experts = max(several.index, key=lambda place: place[2])
    group = models[(models["recipe"] == recipe) & (models["experts"] == experts) & (models["hidden"] == hidden)]
    ends = group["topk"].min(), group["topk"].max()
    rows = base[base["point"].isin(group["point"]) & base["topk"].isin(ends)]
    path = f"More active parameters at equal experts (d{hidden}-E{experts}{recipe.removeprefix(f'd{hidden}')}, "
    path += f"k {ends[0]} to {ends[1]})"
    for key, name, unit, good in main_numbers(rows):
        frame = key.rows(rows).assign(x=lambda part: (part["topk"] == ends[1]).astype("float64"))
        if change := _change(frame, name, unit, good, slope=False):
            yield path, "", change


def _change(frame: pd.DataFrame, name: str, unit: str, good: bool, slope: bool) -> Change | None:
    """The change of `value` along `x`, estimated in each seed: a slope, or the difference of the two ends."""
    first, last = frame["x"].min(), frame["x"].max()
    if not len(frame) or first == last:
        return None
    means = [float(frame[frame["x"] == x]["value"].mean()) for x in (first, last)]
    blocks = [part for _, part in frame.groupby("seed") if part["x"].nunique() == frame["x"].nunique()]
    if not blocks:
        return None
    if not slope:
        blocks = [part[part["x"].isin([first, last])] for part in blocks]
    # Of two points the slope is their difference over their distance, which is taken as one step.
    scale = 1.0 if slope else last - first
    each = [_slope(part) for part in blocks]
    values, errors = np.array([e[0] for e in each]) * scale, np.array([e[1] for e in each]) * scale
    half = math.nan
    if len(values) > 1:
        half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    elif math.isfinite(errors[0]):
        half = stats.norm.ppf((1 + LEVEL) / 2) * errors[0]
    mean = float(values.mean())
    return Change(name, unit, means[0], means[1], mean, mean - half, mean + half, good, len(values))


def _slope(part: pd.DataFrame) -> tuple[float, float]:
    """Least squares of value on x, and its error from the rows' own standard errors."""
    x = part["x"].to_numpy(dtype="float64")
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    slope = float(weights @ part["value"].to_numpy(dtype="float64"))
    return slope, float(np.sqrt((weights**2) @ part["stderr"].to_numpy(dtype="float64") ** 2))


def _decimals(low: float, high: float, change: float) -> int:
    """As many as show two digits of the interval's half width (of the change, where there is no interval)."""
    size = (high - low) / 2 if math.isfinite(low) and high > low else abs(change)
    return max(0, min(6, 1 - math.floor(math.log10(size)))) if size > 0 else 3
