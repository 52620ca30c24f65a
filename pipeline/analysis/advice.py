"""What to train within a budget: the model whose loss a fitted law (laws.py) predicts to be lowest.

The models are those that a budget allows (budget.py). How sure an answer is, is said in four ways: the interval of its
loss, what the bootstrap's other fits choose, which models are as good within the law's held-out error, and what the
other laws choose.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.analysis import laws
from pipeline.analysis.budget import CHOSEN, Budget, Place, candidate, candidates, micro_batches, places
from pipeline.analysis.laws import VARIABLES, Law, Trial
from pipeline.analysis.metrics import LOSSES, kind, primary
from pipeline.config.scales import Scale
from pipeline.dag.dag import BASE
from pipeline.dag.point import Point
from pipeline.errors import PipelineError

AXES = {  # letter of the laws -> what people call it
    "N": "total parameters",
    "A": "active parameters",
    "D": "tokens",
    "S": "sparsity (experts over top-k)",
}
LEVEL = 0.95  # of intervals


@dataclass(frozen=True)
class Outside:
    """An axis on which a model lies outside the table, by what factor."""

    axis: str
    value: float
    low: float
    high: float

    @property
    def factor(self) -> float:
        return max(self.value / self.high, self.low / self.value)

    @property
    def text(self) -> str:
        side = "above the largest" if self.value > self.high else "below the smallest"
        end = self.high if self.value > self.high else self.low
        return f"{self.axis} {self.value:.3g}, {self.factor:.2f} times {side} measured ({end:.3g})"


@dataclass(frozen=True)
class Advice:
    """The answer, how sure it is, and what it rests on."""

    what: str  # the loss that is predicted
    runs: pd.DataFrame
    trials: list[Trial]  # best first
    point: Point
    place: Place
    flops: float
    loss: float
    interval: tuple[float, float]
    draws: int
    share: float  # of the draws that choose this width, experts and top-k
    choices: dict[str, tuple[float, float]]  # interval of what the draws choose
    alike: dict[str, tuple[float, float]]  # range of the models whose loss is the same within the held-out error
    others: dict[str, str]  # form -> the model that it would choose
    outside: list[Outside]
    nearest: str
    away: float  # largest factor between the answer and the nearest measured model, over the axes
    held: dict[str, float]  # axes that do not vary in the table
    coarse: list[str]  # axes with two values only, between which a law is a guess


# ---------------------------------------------------------------------------------------------- what is measured


def runs_of(results: pd.DataFrame, aim: str | None) -> tuple[pd.DataFrame, str]:
    """The runs a law is fitted to, and what loss it is: one row a run, with model, value and the laws' variables.

    Base models only: a checkpoint kept on the way has a learning rate that has not decayed.

    Args:
        results: the tidy table.
        aim: None for pre-training loss (validation, else training); "memorisation" or "reasoning" for the geometric
            mean of the task losses of that kind, of the runs that have all of them.

    Raises:
        PipelineError: the table has no such loss.
    """
    base = results[(results["variant"] == BASE) & results["value"].notna()]
    if aim:
        keys = [key for key in primary(base, "loss") if kind(key.task) == aim]
        what = f"task loss of {', '.join(key.entry for key in keys)}" + " (geometric mean)" * (len(keys) > 1)
    else:
        keys = [key for key in reversed(LOSSES) if len(key.rows(base))][:1]
        what = keys[0].metric.replace("_", " ") if keys else ""
    if not keys:
        tasks = ", ".join(sorted({key.task for key in primary(base, "loss")})) or "none"
        wanted = f"task loss of a {aim} task" if aim else "validation or training loss"
        raise PipelineError(
            f"the table has no {wanted}, which a law would be fitted to (its task losses: {tasks}; "
            f"--for chooses the kind of loss)"
        )
    rows = pd.concat([key.rows(base) for key in keys])
    if (wrong := rows[rows["value"] <= 0]).shape[0]:
        row = wrong.iloc[0]
        raise PipelineError(
            f"{row['point']}: {row['metric']} of {row['entry']} is {row['value']:g}; a law needs losses"
        )
    values = np.exp(np.log(rows["value"]).groupby(rows["point"], sort=False).mean())
    complete = rows.groupby("point", sort=False).size() == len(keys)
    runs = rows.drop_duplicates("point").set_index("point").loc[complete[complete].index].copy()
    runs["value"] = values
    runs["spread"] = runs["experts"] / runs["topk"]
    runs["model"] = runs["series"] + "-E" + runs["experts"].astype(str)
    return runs.reset_index(), what


# ------------------------------------------------------------------------------------------------------ the answer


def outside(models: pd.DataFrame, runs: pd.DataFrame) -> pd.Series:
    """By which factor each model lies outside the table's ranges, on its worst axis; 1 or less inside."""
    factors = [
        np.maximum(models[column] / runs[column].max(), runs[column].min() / models[column])
        for column in VARIABLES.values()
    ]
    return pd.concat(factors, axis=1).max(axis=1)


def advise(
    scale: Scale, runs: pd.DataFrame, what: str, budget: Budget, limit: float, beyond: str = "refuse", count: int = 200
) -> Advice:
    """The best model within the budget.

    Args:
        runs, what: of `runs_of`.
        limit: by which factor an answer may lie outside the table's ranges.
        beyond: what becomes of a best model that lies further outside: "refuse", "stay" (look only at models within
            the limit) or "go" (answer all the same).
        count: bootstrap draws.

    Raises:
        PipelineError: too few models, none that the budget allows, no law that is better than none, or an answer that
            would lie too far outside.
    """
    trials = laws.compare(runs)
    best, none = trials[0], next(t for t in trials if t.form == laws.CONSTANT)
    if best.law is None or not best.beats(none):
        errors = ", ".join(f"{t.form.name} {t.error:.1%}" for t in trials if t.law)
        raise PipelineError(
            f"no law predicts models it has not seen better than their mean does, beyond {laws.BEYOND:g} standard "
            f"errors (held-out errors: {errors}): this table cannot say what to train; more models or seeds could"
        )
    models = candidates(scale, runs, budget)
    far = outside(models, runs)
    if beyond == "stay":
        models = models[far <= limit * (1 + 1e-9)].reset_index(drop=True)
        if models.empty:
            raise PipelineError(f"no model within the budget lies within {limit:g} times the table's ranges")
    predicted = best.law.log_loss(models)
    chosen = models.iloc[int(predicted.argmin())]
    beyond_axes = _outside_axes(chosen, runs)
    if beyond == "refuse" and any(axis.factor > limit for axis in beyond_axes):
        raise PipelineError(_refusal(scale, chosen, beyond_axes, limit, models, predicted, far))
    draws = laws.draws(best.law, runs, models, count)
    return _answer(scale, runs, what, budget, trials, models, predicted, draws)


def _answer(
    scale: Scale,
    runs: pd.DataFrame,
    what: str,
    budget: Budget,
    trials: list[Trial],
    models: pd.DataFrame,
    predicted: laws.Floats,
    draws: laws.Floats,
) -> Advice:
    at = int(predicted.argmin())
    chosen, ends = models.iloc[at], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    picks = models.iloc[draws.argmin(axis=1)]
    low, high = np.exp(np.quantile(draws[:, at], ends))
    same = models[predicted <= predicted[at] + trials[0].error]
    point = _point(scale, chosen)
    measured = runs.drop_duplicates("model")
    apart = pd.concat([np.log(measured[c] / chosen[c]).abs() for c in VARIABLES.values()], axis=1).max(axis=1)
    others = {t.form.name: t.law for t in trials[1:] if t.law and t.form.variables}
    return Advice(
        what=what,
        runs=runs,
        trials=trials,
        point=point,
        place=next(places(point, budget, micro_batches(point))),
        flops=float(chosen["flops"]),
        loss=float(np.exp(predicted[at])),
        interval=(float(low), float(high)),
        draws=len(draws),
        share=float((picks[CHOSEN] == chosen[CHOSEN]).all(axis=1).mean()),
        choices={c: tuple(picks[c].quantile(ends, interpolation="nearest")) for c in [*CHOSEN, "tokens"]},
        alike={c: (float(same[c].min()), float(same[c].max())) for c in [*CHOSEN, "tokens"]},
        others={name: _named(scale, models, law) for name, law in others.items()},
        outside=_outside_axes(chosen, runs),
        nearest=str(measured.loc[apart.idxmin(), "point"]),
        away=float(np.exp(apart.min())),
        held={AXES[v]: float(runs[VARIABLES[v]].median()) for v in laws.fixed_variables(runs)},
        coarse=[AXES[v] for v, c in VARIABLES.items() if runs[c].nunique() == 2],
    )


def _named(scale: Scale, models: pd.DataFrame, law: Law) -> str:
    return _point(scale, models.iloc[int(law.log_loss(models).argmin())]).name


def _point(scale: Scale, row: "pd.Series[Any]") -> Point:
    return candidate(scale, int(row["hidden"]), int(row["experts"]), int(row["topk"]), float(row["tokens"]))


def _outside_axes(chosen: "pd.Series[Any]", runs: pd.DataFrame) -> list[Outside]:
    axes = [
        Outside(AXES[v], float(chosen[c]), float(runs[c].min()), float(runs[c].max())) for v, c in VARIABLES.items()
    ]
    return [axis for axis in axes if axis.factor > 1 + laws.FLAT]


def _refusal(
    scale: Scale,
    chosen: "pd.Series[Any]",
    axes: list[Outside],
    limit: float,
    models: pd.DataFrame,
    predicted: laws.Floats,
    far: pd.Series,
) -> str:
    """Why the law's best model is not advised, and what lies inside."""
    inside = np.where(far <= limit, predicted, np.inf)
    message = (
        f"the law's best model for this budget is {_point(scale, chosen).name}, and it lies outside what was measured: "
        f"{'; '.join(axis.text for axis in axes)}. Beyond {limit:g} times a law is a guess: "
    )
    if np.isfinite(inside.min()):
        nearer = models.iloc[int(inside.argmin())]
        message += f"--inside looks only at models within that (best: {_point(scale, nearer).name}), "
    return message + "--extrapolate answers all the same"
