"""Curves fitted to error against training loss, as in the paper's Figure 4: one for each sparsity.

The form is that of Gadre et al. (arXiv 2403.08540, equation 4), error = a - b * exp(-c * loss): with falling loss the
error leaves what a guess has. For a given c the other two are linear, so c is searched on a grid and they follow. The
losses are taken relative to their mean, which leaves a and c as they are and makes b the error's distance from a there.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

FORM = "error = a - b exp(-c (loss - l0))"
LEAST_POINTS, LEAST_MODELS = 8, 3  # for three coefficients, and for intervals over models
RATES = np.geomspace(0.05, 20, 200)  # what c may be, per nat
DRAWS = 400
LEVEL = 0.95


@dataclass(frozen=True)
class Fit:
    """A fitted curve.

    Attributes:
        coefficients: a, b, c -> (estimate, low, high): percentile intervals (95 %) of a bootstrap over models, whose
            checkpoints are drawn together because they resemble each other.
        centre: l0, in nats per token.
        losses: the lowest and the highest loss that it was fitted to; beyond them it says nothing.
    """

    coefficients: dict[str, tuple[float, float, float]]
    centre: float
    losses: tuple[float, float]
    points: int
    models: int

    def at(self, loss: Any) -> Any:
        """The fitted error at these losses."""
        a, b, c = (self.coefficients[name][0] for name in "abc")
        return a - b * np.exp(-c * (np.asarray(loss) - self.centre))

    @property
    def facts(self) -> dict[str, Any]:
        """The form, its coefficients and what they were fitted to, as columns of a figure's data."""
        said: dict[str, Any] = {"fit": FORM, "l0": self.centre, "fitted points": self.points}
        said |= {"fitted models": self.models}
        for name, (estimate, low, high) in self.coefficients.items():
            said |= {name: estimate, f"{name} low": low, f"{name} high": high}
        return said


def error_law(loss: pd.Series, error: pd.Series, model: pd.Series) -> Fit | None:
    """The curve through checkpoints of several models; None where they are too few, or do not determine one.

    So it is where the best rate is an end of the search (they lie on a straight line, or on a step), and where the
    curve leaves what an error can be.

    Args:
        loss: nats per token.
        error: share of wrong answers.
        model: which model each checkpoint is of.
    """
    models, owner = np.unique(model.to_numpy(str), return_inverse=True)
    x, y = loss.to_numpy(float), error.to_numpy(float)
    if len(x) < LEAST_POINTS or len(models) < LEAST_MODELS or np.ptp(x) == 0:
        return None
    centre = float(x.mean())
    drawn = np.random.default_rng(0).multinomial(len(models), np.full(len(models), 1 / len(models)), DRAWS)
    weights = np.vstack([np.ones(len(x)), drawn[:, owner]])  # the first row is the estimate
    found = _coefficients(weights, np.exp(-np.outer(x - centre, RATES)), y)
    a, b, c = found[:, 0]
    curve = a - b * np.exp(-c * (np.array([x.min(), x.max()]) - centre))  # it is monotone: its ends are its range
    if np.isnan(c) or c in (RATES[0], RATES[-1]) or not 0 < a <= 1 or curve.min() < 0 or curve.max() > 1:
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(found[:, 1:], [tail, 1 - tail], axis=1)
    coefficients = {name: (float(found[i, 0]), float(low[i]), float(high[i])) for i, name in enumerate("abc")}
    return Fit(coefficients, centre, (float(x.min()), float(x.max())), len(x), len(models))


def _coefficients(weights: np.ndarray, powers: np.ndarray, y: np.ndarray) -> np.ndarray:
    """a, b and c for each row of weights: of all rates the one whose regression on `powers` leaves least."""
    whole = weights.sum(axis=1, keepdims=True)
    mean_x, mean_y = weights @ powers / whole, weights @ y[:, None] / whole
    var_x = weights @ powers**2 / whole - mean_x**2
    cov = weights @ (powers * y[:, None]) / whole - mean_x * mean_y
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw of one model again and again has no slope
        slope = np.where(var_x > 1e-12, cov / var_x, np.nan)
    best = np.argmax(np.nan_to_num(slope * cov, nan=-1.0), axis=1)
    row = np.arange(len(weights))
    b = -slope[row, best]
    return np.stack([mean_y[:, 0] + b * mean_x[row, best], b, np.where(np.isnan(b), np.nan, RATES[best])])
