"""The numbers that one test of a claim looks at, as arrays: models by seeds; and estimates with their noise.

The noise of an estimate is what varies from training run to training run, if the table knows it: with two or more
seeds every seed is a block (an estimate is made of each, and the t distribution over them gives the interval). With one
seed there are the rows' own standard errors, which know the test items only, and the scatter of lines or pairs about
their mean; of the two the wider counts. Models share their items, which makes the errors of their differences smaller
than they are taken here. An error over seeds is at least that which the items give to the mean.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from pipeline.analysis.panels import X_COLUMN
from pipeline.analysis.tables import MODEL_COLUMNS

Floats = NDArray[np.float64]
INTERVAL = 0.95  # coverage of the intervals that are shown; verdicts come from corrected p values
LOGARITHMIC = {"experts", "topk", "density", "total_params", "active_params", "tokens_per_param"}
AXES = {column: label.partition(" (")[0] for label, column in X_COLUMN.items()}
AXES |= {"topk": "top-k", "variant": "base and GRPO"}


def named(axis: str) -> str:
    """An axis in words."""
    return AXES.get(axis, axis)


class CannotRun(Exception):
    """Why the table cannot answer: the reason of a verdict "not run"."""


@dataclass(frozen=True)
class Estimate:
    """A number and how far off it may be.

    Attributes:
        stderr: NaN if nothing says.
        df: degrees of freedom of the t distribution; infinite for the normal one.
        noise: what the error is made of, for a reader.
    """

    value: float
    stderr: float
    df: float
    noise: str

    def above(self, limit: float = 0.0) -> float:
        """The p value of "the truth is above the limit" against "it is not"; 1 where no error is known."""
        if math.isnan(self.stderr) or math.isnan(self.value):
            return 1.0
        if self.stderr == 0:
            return 0.0 if self.value > limit else 1.0
        t = (self.value - limit) / self.stderr
        return float(special.ndtr(-t) if math.isinf(self.df) else special.stdtr(self.df, -t))

    def below(self, limit: float = 0.0) -> float:
        """The p value of "the truth is below the limit"."""
        return replace(self, value=-self.value).above(-limit)

    @property
    def half_width(self) -> float:
        """Of the interval."""
        tail = (1 + INTERVAL) / 2
        quantile = special.ndtri(tail) if math.isinf(self.df) else special.stdtrit(self.df, tail)
        return float(quantile) * self.stderr


@dataclass(frozen=True)
class Outcome:
    """What a test found.

    Attributes:
        statistic: what the estimate is of, in words.
        low, high: 95 % interval, by itself (not corrected for other tests); NaN where there is none.
        for_, against: one-sided p values.
        used: numbers of the models that it is computed of.
    """

    statistic: str
    estimate: float
    low: float
    high: float
    for_: float
    against: float
    noise: str
    used: Any = field(default_factory=list)


def wider(one: Estimate, other: Estimate | None) -> Estimate:
    """That of two estimates of one number whose interval is wider; one without an error does not count."""
    if other is None or math.isnan(other.stderr):
        return one
    return other if math.isnan(one.stderr) or other.half_width > one.half_width else one


def over_blocks(values: Floats, noise: str) -> Estimate:
    """The mean of the values that blocks gave; at least two."""
    stderr = float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(float(values.mean()), stderr, len(values) - 1, noise)


@dataclass(frozen=True)
class Cells:
    """One number of every model and seed.

    Attributes:
        models: column -> [models]; series, axes, recipe (a series without width and top-k), variant, shots, samples.
        values, errors, loss: [models, seeds]; the number, its own standard error, the training loss; NaN: not there.
        rows: [models, seeds]; the rows of the table, as point/variant.
    """

    models: dict[str, NDArray[Any]]
    values: Floats
    errors: Floats
    loss: Floats
    rows: NDArray[np.object_]

    @property
    def means(self) -> Floats:
        """[models]; over seeds."""
        return _mean(self.values)

    def place(self, column: str) -> Floats:
        """[models]; where the models are on an axis: the logarithm to base 2 of a size, or the training loss."""
        if column == "train_loss":
            return _mean(self.loss)
        values = self.models[column].astype(np.float64)
        return np.log2(values) if column in LOGARITHMIC else values

    def logarithm(self) -> "Cells":
        """The values' logarithms, with their errors."""
        if (self.values <= 0).any():
            raise CannotRun("a value is not positive, and has no logarithm")
        return replace(self, values=np.log(self.values), errors=self.errors / self.values)

    def less(self, other: "Cells") -> "Cells":
        """The differences to another number of the same models and seeds, with their errors."""
        return replace(self, values=self.values - other.values, errors=np.hypot(self.errors, other.errors))

    def groups(self, columns: list[str], least: int, place: Floats) -> list[Any]:
        """The models of equal columns as lists of their numbers, along an axis; of fewer than `least`: left out."""
        lines: dict[tuple[Any, ...], list[int]] = {}
        there, found = np.isfinite(place) & np.isfinite(self.means), []
        for i, key in enumerate(zip(*(self.models[column].tolist() for column in columns), strict=True)):
            if there[i]:
                lines.setdefault(key, []).append(i)
        for line in map(np.array, lines.values()):
            if len(np.unique(place[line])) >= least:
                found.append(line[np.argsort(place[line], kind="stable")])
        return found

    def contrast(self, weights: Floats, scatter: Estimate | None = None) -> Estimate:
        """A weighted sum of models.

        Args:
            weights: [models].
            scatter: what the scatter of its parts says of it; counts where one seed alone was trained.
        """
        used = weights != 0
        whole = np.isfinite(self.values[used]).all(axis=0)
        stderr = float(np.sqrt(weights[used] ** 2 @ _mean(self.errors[used]) ** 2))
        if (seeds := int(whole.sum())) >= 2:
            found = over_blocks(weights[used] @ self.values[used][:, whole], f"{seeds} seeds")
            # Seeds that agree by chance, as a share of few items does, are no exact result.
            return replace(found, stderr=float(np.fmax(found.stderr, stderr / math.sqrt(seeds))))
        value = float(weights[used] @ self.means[used])
        return wider(Estimate(value, stderr, math.inf, "test items only"), scatter)

    def pooled(self, line: Any) -> "Pooled":
        """Some of the models, for differences among them."""
        whole = np.isfinite(self.values[line]).all(axis=0)
        values = self.values[line][:, whole]
        seeds, models = values.shape[1], len(values)
        if seeds < 2 or models < 2:
            return Pooled(self.means[line], _mean(self.errors[line]) ** 2, math.inf, "test items only")
        left = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
        df = (models - 1) * (seeds - 1)
        variance = np.fmax(float((left**2).sum()) / df, (_mean(self.errors[line]) ** 2).mean()) / seeds
        return Pooled(values.mean(axis=1), np.full(models, variance), df, f"{seeds} seeds, pooled over the series")


@dataclass(frozen=True)
class Pooled:
    """Means of models with one error for all, from the seeds' residuals (blocks of an analysis of variance)."""

    means: Floats
    variances: Floats
    df: float
    noise: str

    def difference(self, after: int, before: int) -> Estimate:
        """One model less another."""
        stderr = math.sqrt(self.variances[after] + self.variances[before])
        return Estimate(float(self.means[after] - self.means[before]), stderr, self.df, self.noise)


def _mean(values: Floats) -> Floats:
    """[models]; the mean over the seeds that are there, NaN where none is."""
    there = np.isfinite(values)
    count = there.sum(axis=1)
    total: Floats = np.where(there, values, 0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def cells_of(rows: pd.DataFrame) -> Cells:
    """The cells of rows of the table that are one number of each model, with columns `samples` and `loss` beside."""
    columns = [*MODEL_COLUMNS, "variant", "step", "shots", "samples"]
    model = rows.groupby(columns, sort=False, dropna=False).ngroup().to_numpy()
    seed = pd.factorize(rows["seed"], sort=True)[0]
    shape = (model.max() + 1, seed.max() + 1)
    arrays = {}
    for name, column in (("values", "value"), ("errors", "stderr"), ("loss", "loss")):
        arrays[name] = np.full(shape, np.nan)
        arrays[name][model, seed] = rows[column].to_numpy(dtype=float, na_value=np.nan)
    names = np.full(shape, None, dtype=object)
    names[model, seed] = (rows["point"] + "/" + rows["variant"]).to_numpy(dtype=object)
    models = rows.iloc[np.unique(model, return_index=True)[1]][columns].reset_index(drop=True)
    models = models.astype({"shots": "float64"}).fillna({"shots": -1, "samples": -1})  # -1: of no evaluation, no vote
    widths = models[["series", "hidden", "topk"]].to_numpy().tolist()
    models["recipe"] = [series.removeprefix(f"d{hidden}-k{topk}") for series, hidden, topk in widths]
    columns_of = {str(column): models[column].to_numpy() for column in models}
    return Cells(models=columns_of, rows=names, **arrays)
