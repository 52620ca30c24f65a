"""What the numbers say: differences, each set against its own noise, in words that can come out either way.

A difference is "beyond noise" if it is larger than `NOISE` combined standard errors, sqrt(a² + b²). All models answer
the same items, so a paired test would be sharper; this one errs on the side of "within noise".
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from pipeline.analysis.metrics import AT, LOSSES, MEMORISATION, REASONING, Key, family, kind, primary
from pipeline.analysis.tables import over_seeds, plus_minus
from pipeline.dag.dag import BASE, GRPO
from pipeline.dag.point import short

NOISE = 2.0
BETTER, WORSE, WITHIN, UNKNOWN = "better, beyond noise", "worse, beyond noise", "within noise", "no error bar"


@dataclass(frozen=True)
class Difference:
    """After minus before; `stderr` is NaN if either has none; `good` is signed so that more is better."""

    value: float
    stderr: float
    good: float

    @property
    def verdict(self) -> str:
        if math.isnan(self.stderr):
            return UNKNOWN
        if abs(self.value) <= NOISE * self.stderr:
            return WITHIN
        return BETTER if self.good > 0 else WORSE

    @property
    def text(self) -> str:
        return ("+" if self.value >= 0 else "") + plus_minus(self.value, self.stderr)


@dataclass(frozen=True)
class Finding:
    """One comparison: a row of the report."""

    what: str  # entry and metric
    where: str  # the models compared
    before: str
    after: str
    difference: Difference
    remark: str = ""

    @property
    def verdict(self) -> str:
        return self.difference.verdict


@dataclass(frozen=True)
class Topic:
    """One question, what the paper reports on it, and what this run finds."""

    name: str
    question: str
    paper: str
    unit: str  # what is compared: series, models ...
    findings: list[Finding]

    @property
    def summary(self) -> list[str]:
        """For each verdict the metrics it fits and in how many of their comparisons, then the conclusion."""
        sentences = []
        total = Counter(finding.what for finding in self.findings)
        for verdict in (BETTER, WORSE, WITHIN, UNKNOWN):
            count = Counter(finding.what for finding in self.findings if finding.verdict == verdict)
            parts = [
                f"{what} (in {count[what]} of {total[what]} {self.unit})" if total[what] > 1 else what for what in count
            ]
            if parts:
                sentences.append(f"{verdict.capitalize()}: {', '.join(parts)}.")
        beyond = [f for f in self.findings if f.verdict in (BETTER, WORSE)]
        if all(f.verdict == UNKNOWN for f in self.findings):
            sentences.append("Without error bars, nothing here can be told from noise.")
        elif not beyond:
            sentences.append("This run shows no effect here.")
        elif {f.verdict for f in beyond} == {BETTER, WORSE}:
            sentences.append("The effects beyond noise point in both directions.")
        return sentences


def compare(before: pd.Series, after: pd.Series) -> Difference:
    """The difference of two rows of `tables.over_seeds` of one metric."""
    value = float(after["value"] - before["value"])
    lower_is_better = family(str(after["stage"]), str(after["metric"])) == "loss"
    return Difference(value, math.hypot(before["stderr"], after["stderr"]), -value if lower_is_better else value)


def topics(results: pd.DataFrame) -> list[Topic]:
    """The questions that the table has comparisons for."""
    merged = over_seeds(results[results["variant"].isin([BASE, GRPO])])
    keys = [key for measured in ("accuracy", "bits", "loss", "majority") for key in primary(merged, measured)]
    by_kind = {side: [key for key in keys if kind(key.task) == side] for side in (MEMORISATION, REASONING)}
    every = [
        Topic(
            "Loss",
            "Does pre-training loss fall as total parameters grow, at equal active parameters?",
            "falls (Figure 1).",
            "series",
            list(_trends(merged, LOSSES)),
        ),
        Topic(
            "Memorisation",
            "Does recall improve as total parameters grow, at equal active parameters?",
            "improves steadily (TriviaQA, HellaSwag; Figures 1 to 5).",
            "series",
            list(_trends(merged, by_kind[MEMORISATION])),
        ),
        Topic(
            "Reasoning",
            "Does reasoning improve as total parameters grow, at equal active parameters?",
            "improves up to a point and then gets worse (GSM8K, GSM-Plus; Figures 1 to 5).",
            "series",
            list(_trends(merged, by_kind[REASONING])),
        ),
        Topic(
            "Active parameters",
            "What does a larger top-k change at equal total parameters?",
            "helps reasoning, at equal tokens per parameter (Figure 7).",
            "pairs of models",
            list(_wider(merged, keys)),
        ),
        Topic(
            "GRPO",
            "What does GRPO change?",
            "raises reasoning without changing how it depends on total parameters (Figure 6).",
            "models",
            list(_post_trained(merged, keys)),
        ),
        Topic(
            "Self-consistency",
            "What does a majority vote over many samples gain over one sample?",
            "raises reasoning without changing how it depends on total parameters (Figure 6).",
            "models",
            list(_voted(merged)),
        ),
    ]
    return [topic for topic in every if topic.findings]


def _finding(what: str, where: str, before: pd.Series, after: pd.Series, remark: str = "") -> Finding:
    texts = [plus_minus(row["value"], row["stderr"]) for row in (before, after)]
    return Finding(what, where, texts[0], texts[1], compare(before, after), remark)


def _after(variant: object) -> str:
    return " after GRPO" if variant == GRPO else ""


def _trends(merged: pd.DataFrame, keys: Iterable[Key]) -> Iterable[Finding]:
    """Smallest against largest model of each series, with what happens in between as the remark."""
    for key in keys:
        for (series, variant), group in key.rows(merged).groupby(["series", "variant"], sort=True):
            cells = [row for _, row in group.sort_values("total_params").iterrows()]
            if len(cells) < 2:
                continue
            first, last = cells[0], cells[-1]
            sizes = f"E={first['experts']} to {last['experts']}"
            sizes += f" ({short(first['total_params'])} to {short(last['total_params'])} total)"
            yield _finding(f"{key.heading}{_after(variant)}", f"{series}, {sizes}", first, last, _between(cells))


def _between(cells: list[pd.Series]) -> str:
    """Whether a series goes one way step by step, and whether it turns down after its best model."""
    if len(cells) < 3:
        return ""
    steps = [compare(before, after) for before, after in pairwise(cells)]
    up, down = [s for s in steps if s.good > 0], [s for s in steps if s.good < 0]
    if len(up) == len(steps):
        text = f"Better at each of {len(steps)} steps{_count(steps, BETTER)}."
    elif len(down) == len(steps):
        text = f"Worse at each of {len(steps)} steps{_count(steps, WORSE)}."
    else:
        text = f"Not monotone: better at {len(up)} of {len(steps)} steps{_count(steps, BETTER)}, "
        text += f"worse at {len(down)}{_count(steps, WORSE)}."
    gains = [compare(cells[0], cell).good for cell in cells]
    best = gains.index(max(gains))
    if 0 < best < len(cells) - 1:
        fall = compare(cells[best], cells[-1])
        text += f" Best at E={cells[best]['experts']}; from there to the largest {fall.text}, {fall.verdict}."
    return text


def _count(steps: list[Difference], verdict: str) -> str:
    verdicts = [step.verdict for step in steps]
    return "" if UNKNOWN in verdicts else f" ({verdicts.count(verdict)} beyond noise)"


def _wider(merged: pd.DataFrame, keys: Iterable[Key]) -> Iterable[Finding]:
    """Neighbouring top-k at equal width, experts and recipe: total parameters are equal, active ones are not."""
    for key in keys:
        rows = key.rows(merged)
        rows = rows[rows["variant"] == BASE]
        recipes = [s.removeprefix(f"d{d}-k{k}") for s, d, k in rows[["series", "hidden", "topk"]].to_numpy().tolist()]
        for (hidden, experts, recipe), group in rows.assign(recipe=recipes).groupby(["hidden", "experts", "recipe"]):
            cells = [row for _, row in group.sort_values("topk").iterrows()]
            for before, after in pairwise(cells):
                active = f"{short(before['active_params'])} to {short(after['active_params'])} active"
                where = f"d{hidden}-E{experts}{recipe}, k={before['topk']} to {after['topk']} ({active})"
                yield _finding(key.heading, where, before, after)


def _post_trained(merged: pd.DataFrame, keys: Iterable[Key]) -> Iterable[Finding]:
    """Each model before and after GRPO."""
    for key in keys:
        for (series, experts), group in key.rows(merged).groupby(["series", "experts"], sort=True):
            cells = {row["variant"]: row for _, row in group.iterrows()}
            if cells.keys() >= {BASE, GRPO}:
                yield _finding(key.heading, f"{series}, E={experts}", cells[BASE], cells[GRPO])


def _voted(merged: pd.DataFrame) -> Iterable[Finding]:
    """Majority of one sample (plain sampling) against majority of the most samples, in each model."""
    votes = merged[merged["metric"].str.startswith("majority@")]
    votes = votes.assign(samples=votes["metric"].str.extract(AT.pattern)[1].astype("int64"))
    for (entry, series, experts, variant), group in votes.groupby(["entry", "series", "experts", "variant"], sort=True):
        cells = [row for _, row in group.sort_values("samples").iterrows()]
        if cells[0]["samples"] == 1 and len(cells) > 1:
            what = f"{entry} majority@1 to @{cells[-1]['samples']}{_after(variant)}"
            yield _finding(what, f"{series}, E={experts}", cells[0], cells[-1])


def cautions(results: pd.DataFrame, topics: list[Topic]) -> list[str]:
    """What a reader has to know before believing any of it."""
    models = results.drop_duplicates("point")
    sizes = f"{short(models['total_params'].min())} to {short(models['total_params'].max())}"
    sentences = [f"These models have {sizes} total parameters; the paper's have 320M to 52.2B."]
    if models["total_params"].max() < 320e6:
        sentences.append(
            "This is a miniature: effects and their absence hold at this size and on this data only. It neither "
            "confirms nor refutes the paper."
        )
    seeds = int(models.groupby(["series", "experts"]).size().max())
    if seeds == 1:
        sentences.append(
            "Each model was trained once. Error bars hold the spread over test items only; the spread between training "
            "runs is not measured and may be larger than the differences below."
        )
    else:
        sentences.append(
            f"Up to {seeds} seeds per model; error bars combine their spread and the spread over test items. With "
            "fewer than about five seeds, two standard errors are a lenient limit."
        )
    judged = sum(f.verdict != UNKNOWN for topic in topics for f in topic.findings)
    sentences.append(
        f"{judged} differences are judged against {NOISE:g} combined standard errors. Even if nothing had any effect, "
        f"about {judged * math.erfc(NOISE / math.sqrt(2)):.1f} of them would be expected beyond that by chance, and "
        "the best model of a series is picked after the fact. A fraction of 0 or 1 has the Agresti-Coull error, since "
        "its own would be zero."
    )
    return sentences
