"""The tests of claims (config/claims.yaml): what each computes, and how far it speaks for and against the claim.

Each takes the cells of one number and gives an outcome with two one-sided p values: `for_`, of the claim against its
absence, and `against`, of the contrary against its absence. So a claim fails on evidence against it only; where both p
values are large it is undecided. Of several models, series or places a claim about each of them has the largest p value
(an intersection-union test), one about any of them the smallest times their number (Bonferroni).
"""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from pipeline.analysis.cells import CannotRun, Cells, Estimate, Floats, Outcome, Pooled, named, over_blocks
from pipeline.analysis.orders import any_of_each, correlation, tail
from pipeline.config.claims import (
    Between,
    Interior,
    Monotone,
    NumberTest,
    Optimum,
    Paired,
    Peak,
    Rank,
    Shape,
    Spread,
    Trend,
)

REVERSAL = 0.05  # p value below which two models in the other order contradict a claim of monotony
MODEL = ["series", "hidden", "experts", "topk", "variant", "step", "samples", "shots"]
LINE = ["series", "variant", "samples", "shots"]  # what models of a line share, along experts
BESIDE = {  # axis -> what models that differ in it alone share
    "topk": ["recipe", "hidden", "experts", "variant", "step", "samples", "shots"],
    **{axis: [column for column in MODEL if column != axis] for axis in ("variant", "samples", "shots")},
}


def _outcome(statistic: str, e: Estimate, for_: float, against: float, used: Any) -> Outcome:
    low, high = e.value - e.half_width, e.value + e.half_width
    return Outcome(statistic, e.value, low, high, min(for_, 1.0), min(against, 1.0), e.noise, used)


def _directed(statistic: str, e: Estimate, direction: str, used: Any) -> Outcome:
    up, down = e.above(), e.below()
    return _outcome(statistic, e, *((up, down) if direction == "rises" else (down, up)), used)


def _equivalence(statistic: str, e: Estimate, low: float, high: float, used: Any) -> Outcome:
    """For "between low and high": two one-sided tests (Schuirmann 1987, J. Pharmacokin. Biopharm. 15)."""
    return _outcome(statistic, e, max(e.above(low), e.below(high)), min(e.below(low), e.above(high)), used)


def _lines(cells: Cells, along: str, least: int) -> list[Any]:
    """The models of each line, in the order of an axis.

    Raises:
        CannotRun: no line is long enough.
    """
    columns = BESIDE["topk"] if along in ("topk", "active_params") else LINE
    groups = cells.groups(columns, least, cells.place(along))
    if not groups:
        raise CannotRun(f"no line has {least} models along {named(along)}")
    return groups


# -------------------------------------------------------------------------------------------------------- lines


def trend(test: Trend, cells: Cells, least: int) -> Outcome:
    """The mean over lines of the least-squares slope; a slope of each seed, and t over seeds."""
    cells = cells.logarithm() if test.log and not test.less else cells  # of two numbers they are taken already
    groups, place = _lines(cells, test.along, least), cells.place(test.along)
    weights, slopes, squares, df = np.zeros(len(cells.means)), [], 0.0, 0
    for line in groups:
        x, y = place[line] - place[line].mean(), cells.means[line]
        slope = float(x @ y / (x @ x))
        left = y - y.mean() - slope * x
        weights[line] += x / (x @ x) / len(groups)
        slopes.append(slope)
        squares, df = squares + float(left @ left) / float(x @ x), df + len(line) - 2
    if len(groups) >= least:
        scatter = over_blocks(np.array(slopes), f"one seed, scatter of {len(groups)} series")
    else:  # of each line's models about it; equal weights, since their numbers are about equal
        stderr = math.sqrt(squares / (df / len(groups))) / len(groups)
        scatter = Estimate(float(np.mean(slopes)), stderr, df, "one seed, scatter about the line")
    unit = "the unit of training loss" if test.along == "train_loss" else f"doubling of {named(test.along)}"
    value = f"{'ln ' * test.log}value" if test.less is None else "ln of their ratio" if test.log else "their difference"
    what = f"mean slope of {value} for each {unit}"
    return _directed(what, cells.contrast(weights, scatter), test.direction, np.concatenate(groups))


def monotone(test: Monotone, cells: Cells, least: int) -> Outcome:
    """For: the rank correlation, if no line goes the other way. Against: that, or two models in the other order."""
    groups, sign = _lines(cells, test.along, least), 1 if test.direction == "rises" else -1
    found = correlation([(cells.place(test.along)[line], cells.means[line]) for line in groups], test.direction)
    pairs, smallest = 0, 1.0
    for line in groups:
        pooled = cells.pooled(line)
        for before, after in combinations(range(len(line)), 2):
            difference = pooled.difference(after, before)
            smallest = min(smallest, difference.below() if sign > 0 else difference.above())
            pairs += 1
    reversal = smallest * pairs
    against_it = any(sign * rho <= 0 for rho in found.each) or reversal <= REVERSAL
    against = 2 * min(reversal, found.against)
    used = np.concatenate(groups)
    return found.outcome(named(test.along), 1.0 if against_it else found.for_, min(against, 1.0), used)


def rank(test: Rank, cells: Cells, least: int) -> Outcome:
    """Spearman's correlation of the seeds' means, averaged over series."""
    place = cells.place(test.along)
    if test.within == "series":
        groups = _lines(cells, test.along, least)
    else:
        groups = [np.flatnonzero(np.isfinite(place) & np.isfinite(cells.means))]
        if len(groups[0]) < least:
            raise CannotRun(f"fewer than {least} models have {named(test.along)}")
    found = correlation([(place[line], cells.means[line]) for line in groups], test.direction)
    return found.outcome(named(test.along), found.for_, found.against, np.concatenate(groups))


def shape(test: Shape, cells: Cells, least: int) -> Outcome:
    """Spearman's correlation of the values before with those after, averaged over series."""
    pairs = _pairs(cells, test.axis, {})
    series = cells.models["series"]
    groups = [[pair for pair in pairs if series[pair[0]] == name] for name in sorted({series[i] for i, _ in pairs})]
    groups = [group for group in groups if len(group) >= least]
    if not groups:
        raise CannotRun(f"no series has {least} models before and after ({named(test.axis)})")
    lines = [(cells.means[[i for i, _ in group]], cells.means[[j for _, j in group]]) for group in groups]
    found = correlation(lines, "rises")
    return found.outcome("the value before", found.for_, found.against, np.ravel([p for g in groups for p in g]))


# ------------------------------------------------------------------------------------------------------ optima


def interior(test: Interior, cells: Cells, least: int) -> Outcome:
    """For: a model between the ends is better than both. Against: an end is better than all models between."""
    groups = _lines(cells, test.along, least)
    shown, for_, against = zip(*(_interior_line(cells.pooled(line), test.of) for line in groups), strict=True)
    many = len(groups)
    if test.series == "each":
        p, clearest = (max(for_), min(against) * many), int(np.argmax(for_))
    else:
        p, clearest = (min(for_) * many, max(against)), int(np.argmin(for_))
    of = f", {'least clear' if test.series == 'each' else 'clearest'} of {many} series" * (many > 1)
    what = f"how much worse the better end is than the best between{of}"
    return _outcome(what, shown[clearest], *p, np.concatenate(groups))


def _interior_line(models: Pooled, of: str) -> tuple[Estimate, float, float]:
    """Of one line in its order: by how much its better end is worse than the best between; p values for and against."""
    last, sign = len(models.means) - 1, 1.0 if of == "minimum" else -1.0

    def gap(end: int, i: int) -> Estimate:
        """By how much an end is worse than a model between."""
        difference = models.difference(end, i)
        return replace(difference, value=sign * difference.value)

    gaps = [min((gap(0, i), gap(last, i)), key=lambda e: e.value) for i in range(1, last)]
    for_ = min(max(gap(0, i).above(), gap(last, i).above()) for i in range(1, last)) * len(gaps)
    against = min(max(gap(end, i).below() for i in range(1, last)) for end in (0, last)) * 2
    return max(gaps, key=lambda e: e.value), min(for_, 1.0), min(against, 1.0)


def optimum(test: Optimum, cells: Cells, least: int) -> Outcome:
    """Spearman's correlation over series of the place (or the value) of the best model with active parameters.

    The density k / E rises with active parameters wherever the best is. So a place has to be further from what it is
    where any model of a series is as likely to be the best, too.
    """
    lines = _lines(cells, "experts", least)
    best = _best(cells, test.of, lines)
    if len(best) < max(least, 4):
        raise CannotRun(f"{len(best)} series with {least} or more models; an order of optima needs {max(least, 4)}")
    place = cells.means if test.at == "value" else cells.place(test.at)
    if not np.isfinite(place[np.concatenate(lines)]).all():
        raise CannotRun(f"a model has no {named(test.at)}")
    active = cells.place("active_params")[best]
    found = correlation([(active, place[best])], test.direction)
    for_, against = found.for_, found.against
    if test.at != "value":
        chance = any_of_each(tuple(active), tuple(tuple(place[line]) for line in lines))
        rises, falls = tail(chance, found.mean, 1)
        rises, falls = (rises, falls) if test.direction == "rises" else (falls, rises)
        for_, against = max(for_, rises), max(against, falls)
    of = f"active parameters, of the {named(test.at)} of each series' best"
    return found.outcome(of, for_, against, np.concatenate(lines))


def peak(test: Peak, cells: Cells, least: int) -> Outcome:
    """The mean over series of log2 of the best model's place, against the number within the factor."""
    lines = _lines(cells, "experts", least)
    best = _best(cells, test.of, lines)
    if len(best) < least:
        raise CannotRun(f"{len(best)} series with {least} or more models; a mean of optima needs {least}")
    mean = over_blocks(cells.place(test.at)[best], f"scatter of {len(best)} series")
    middle, width = math.log2(test.value), math.log2(test.factor)
    used = np.concatenate(lines)
    return _equivalence(
        f"mean log2 of {named(test.at)} where a series is best", mean, middle - width, middle + width, used
    )


def _best(cells: Cells, of: str, lines: list[Any]) -> list[int]:
    """The best model of each line."""
    choose = np.argmin if of == "minimum" else np.argmax
    return [int(line[choose(cells.means[line])]) for line in lines]


# ------------------------------------------------------------------------------------------------------- pairs


def paired(test: Paired, cells: Cells, least: int) -> Outcome:
    """The mean difference over pairs; a mean of each seed, and t over seeds."""
    cells = cells.logarithm() if test.log else cells
    pairs = _pairs(cells, test.axis, test.near)
    if not pairs:
        raise CannotRun(f"no two models differ in {named(test.axis)} alone")
    weights = np.zeros(len(cells.means))
    for before, after in pairs:
        weights[after] += 1 / len(pairs)
        weights[before] -= 1 / len(pairs)
    differences = np.array([cells.means[after] - cells.means[before] for before, after in pairs])
    scatter = over_blocks(differences, f"one seed, scatter of {len(pairs)} pairs") if len(pairs) >= least else None
    estimate = cells.contrast(weights, scatter)
    what = f"mean difference{' of ln value' * test.log} along {named(test.axis)}, pairs: {len(pairs)}"
    if test.direction:
        return _directed(what, estimate, test.direction, np.ravel(pairs))
    assert test.margin is not None
    return _equivalence(what, estimate, -test.margin, test.margin, np.ravel(pairs))


def _pairs(cells: Cells, axis: str, near: dict[Any, float]) -> list[tuple[int, int]]:
    """(before, after): models that differ in the axis; of equal ones the least and the most, or all that are near."""
    models = cells.models
    place = np.asarray(models["variant"] == "grpo" if axis == "variant" else models[axis], dtype=np.float64)
    if near:
        ratios = {column: models[column].astype(np.float64) for column in near}
        return [
            (i, j)
            for i in range(len(place))
            for j in range(len(place))
            if place[i] < place[j]
            and models["variant"][i] == models["variant"][j]
            and all(max(v[i] / v[j], v[j] / v[i]) <= near[column] for column, v in ratios.items())
            and np.isfinite(cells.means[[i, j]]).all()
        ]
    columns = [column for column in BESIDE[axis] if column != "step"] if axis == "variant" else BESIDE[axis]
    return [(int(line[0]), int(line[-1])) for line in cells.groups(columns, 2, place)]


# ----------------------------------------------------------------------------------------------------- numbers


def number(test: NumberTest, cells: Cells, least: int) -> Outcome:
    """The value against the number within the tolerance."""
    value, what = cells.means, "mean"
    if not np.isfinite(value).all():
        raise CannotRun("a value is not there")
    weights = np.zeros(len(value))
    if test.at is not None:
        weights, what = _interpolation(cells, test.at), f"at training loss {test.at:g}"
    elif test.of:
        better = "minimum" if (test.of == "minimum") != test.error else "maximum"
        weights[int(value.argmin() if better == "minimum" else value.argmax())] = 1
        what = f"{test.of}{' error' * test.error} of {len(value)} models"
    else:
        weights += 1 / len(value)
        what = f"value of {len(value)} model{'s' * (len(value) > 1)}"
    estimate = cells.contrast(weights)
    if test.error:
        estimate = Estimate(1 - estimate.value, estimate.stderr, estimate.df, estimate.noise)
    low, high = test.value - test.tolerance, test.value + test.tolerance
    return _equivalence(what, estimate, low, high, np.flatnonzero(weights))


def _interpolation(cells: Cells, at: float) -> Floats:
    """[models]; of the two models nearest to a training loss on either side."""
    loss = cells.place("train_loss")
    below, above = np.flatnonzero(loss <= at), np.flatnonzero(loss >= at)
    if not len(below) or not len(above):
        raise CannotRun(f"no models on both sides of training loss {at:g}")
    i, j = below[loss[below].argmax()], above[loss[above].argmin()]
    share = (at - loss[i]) / (loss[j] - loss[i]) if loss[j] > loss[i] else 0.0
    weights = np.zeros(len(loss))
    weights[i] += 1 - share
    weights[j] += share
    return weights


def spread(test: Spread, cells: Cells, least: int) -> Outcome:
    """Differences of the densities' mean distances from one curve (of degree 2 in training loss) for all models."""
    loss, density = cells.place("train_loss"), cells.models["density"].astype(np.float64)
    there = np.flatnonzero(np.isfinite(loss) & np.isfinite(cells.means))
    kinds = np.unique(density[there])
    if len(there) < 3 + len(kinds) or len(kinds) < 2:
        raise CannotRun("too few models with a training loss, or of one density only")
    design = np.vander(loss[there] - loss[there].mean(), 3)
    residual = np.eye(len(there)) - design @ np.linalg.pinv(design)  # values -> distances from the curve
    means = {k: (density[there] == k) / (density[there] == k).sum() @ residual for k in kinds}
    found = []
    for one, other in combinations(kinds, 2):
        weights = np.zeros(len(loss))
        weights[there] = means[one] - means[other]
        found.append(_equivalence("", cells.contrast(weights), -test.tolerance, test.tolerance, there))
    widest = max(found, key=lambda outcome: abs(outcome.estimate))
    for_, against = max(outcome.for_ for outcome in found), min(outcome.against for outcome in found) * len(found)
    what = f"largest difference of mean distance from one curve, of {len(kinds)} densities"
    ends = sorted((abs(widest.estimate), abs(widest.low), abs(widest.high)))
    low = 0.0 if widest.low <= 0 <= widest.high else ends[0]
    return Outcome(what, abs(widest.estimate), low, ends[-1], for_, min(against, 1.0), widest.noise, there)


def between(test: Between, differences: Cells, least: int) -> Outcome:
    """The mean over models of one scale less another.

    Args:
        differences: of each model and seed that both scales have.
    """
    values = differences.means
    scatter = over_blocks(values, f"one seed, scatter of {len(values)} models") if len(values) >= least else None
    estimate = differences.contrast(np.full(len(values), 1 / len(values)), scatter)
    what, used = f"mean difference of {len(values)} model{'s' * (len(values) > 1)}", np.arange(len(values))
    if test.direction:
        return _directed(what, estimate, test.direction, used)
    assert test.value is not None and test.tolerance is not None
    return _equivalence(what, estimate, test.value - test.tolerance, test.value + test.tolerance, used)


TESTS: dict[str, Callable[[Any, Cells, int], Outcome]] = {
    "trend": trend,
    "monotone": monotone,
    "rank": rank,
    "interior": interior,
    "optimum": optimum,
    "peak": peak,
    "paired": paired,
    "shape": shape,
    "number": number,
    "spread": spread,
    "between": between,
}
