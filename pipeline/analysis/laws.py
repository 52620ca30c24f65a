"""Laws of loss fitted to a table's runs: how a loss depends on parameters, tokens and sparsity.

Every form is a sum of power laws. With N total parameters, A active parameters, D tokens and S = E/k (experts over
top-k, the inverse of the density), a to e scales and p to w exponents:

    joint     a S^p A^(q + r ln S) + b S^u D^(v + w ln S) + c
              Ludziejewski et al. (arXiv 2502.05172), joint in active parameters, tokens and experts. Simplified: they
              bound the number of experts at both ends before it enters, and have top-1 routing; here it is S.
    sparsity  a N^p + b D^q + c S^r + d S^u N^v + e
              Abnar et al. (arXiv 2501.12370), in total parameters, tokens and sparsity: their 1 - sparsity is 1/S.
    total     a N^p S^q + b D^r + e
              After the finding of Liew et al. (arXiv 2601.08215) that total parameters and sparsity S decide. The form
              is ours: the simplest law in these. Their slight penalty for the number of experts is left out.
    constant  e
              No dependence: what a form has to beat before anything is advised.

Exponents have either sign, since a loss may rise with any of these. A variable that does not vary in the table cannot
be fitted: what holds it is left out of the form, and terms that become equal are one.

A fit minimises the Huber loss of ln(predicted) - ln(measured) from several starts. Forms are compared by the mean
error of models that were held out, all seeds of a model together. Intervals are of the Bayesian bootstrap (Rubin
1981), which weighs models and their seeds at random: resampling would leave fewer models than a form has parameters.
They hold for the form that was chosen; that another form may be true is not in them.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from pipeline.errors import PipelineError

Floats = NDArray[np.float64]

VARIABLES = {"N": "total_params", "A": "active_params", "D": "tokens", "S": "spread"}  # letter -> column of the runs
STARTS = 6
SPARE = 2  # models beyond a form's parameters, so that a fit without one of them still has a residual
STEEPEST = 3.0  # bound of exponents
FAINTEST = 10.0  # a term may be exp(-10) of the smallest loss: absent
FLAT = 0.01  # a variable whose values lie within this factor of each other does not vary
ALONG_ONE_LINE = 0.02  # ratio of singular values below which variables vary together
BEYOND = 2.0  # standard errors by which a law has to beat no law
SINGLE_SEED_NOISE = 0.01  # of ln(loss), where no model has several seeds


@dataclass(frozen=True)
class Form:
    """A sum of power laws. A term lists what its logarithm is linear in: "1", a variable, or a product ("S*A")."""

    name: str
    source: str
    terms: tuple[tuple[str, ...], ...]

    @property
    def parameters(self) -> int:
        return sum(len(term) for term in self.terms)

    @property
    def needs(self) -> int:
        """How many models it takes to fit the form and to judge the fit."""
        return self.parameters + SPARE

    @property
    def variables(self) -> list[str]:
        return [v for v in VARIABLES if any(v in feature.split("*") for term in self.terms for feature in term)]

    def without(self, fixed: Iterable[str]) -> "Form":
        """The form for data in which these variables do not vary."""
        left = [tuple(f for f in term if not set(f.split("*")) & set(fixed)) for term in self.terms]
        return Form(self.name, self.source, tuple(dict.fromkeys(left)))


JOINT = Form(
    "joint", "Ludziejewski et al. 2502.05172, simplified", (("1", "S", "A", "S*A"), ("1", "S", "D", "S*D"), ("1",))
)
SPARSITY = Form("sparsity", "Abnar et al. 2501.12370", (("1", "N"), ("1", "D"), ("1", "S"), ("1", "S", "N"), ("1",)))
TOTAL = Form("total", "after Liew et al. 2601.08215", (("1", "N", "S"), ("1", "D"), ("1",)))
CONSTANT = Form("constant", "no dependence", (("1",),))
FORMS = (JOINT, SPARSITY, TOTAL, CONSTANT)


@dataclass(frozen=True)
class Law:
    """A form with its coefficients; variables enter as ln(value) - centre."""

    form: Form
    centre: dict[str, float]
    coefficients: Floats  # of all terms, one after the other
    noise: float = SINGLE_SEED_NOISE  # of the runs it was fitted to

    def log_loss(self, models: pd.DataFrame) -> Floats:
        """ln of the predicted loss of each row; the columns are those of `VARIABLES`."""
        return _log_loss(self.coefficients, _designs(self.form, self.centre, models))[0]

    @property
    def text(self) -> str:
        """The law with its numbers, variables relative to their centre: "0.81 (N/2.1e+09)^-0.25 + 1.4"."""
        numbers, terms = iter(self.coefficients.tolist()), []
        for term in self.form.terms:
            factors = []
            for feature in term:
                number = next(numbers)
                names = [f"{v}/{np.exp(self.centre[v]):.2g}" for v in feature.split("*") if v != "1"]
                power = f"{number:.2g}" + "".join(f" ln({name})" for name in names[:-1])
                factors.append(f"({names[-1]})^({power})" if names else f"{np.exp(number):.3g}")
            terms.append(" ".join(factors))
        return " + ".join(terms)


@dataclass(frozen=True)
class Trial:
    """What became of one form: its law and its errors, or why it was not fitted."""

    form: Form
    law: Law | None = None
    errors: Floats | None = None  # of each model held out: |ln(predicted) - ln(measured)|, seeds averaged
    skipped: str = ""

    @property
    def error(self) -> float:
        """Mean of `errors`; infinite if the form was not fitted."""
        return math.inf if self.errors is None else float(self.errors.mean())

    def beats(self, other: "Trial") -> bool:
        """Whether its errors are smaller by more than `BEYOND` standard errors, model by model."""
        if self.errors is None or other.errors is None:
            return False
        gain = other.errors - self.errors
        return bool(gain.mean() > BEYOND * gain.std(ddof=1) / np.sqrt(len(gain)))


def models_of(runs: pd.DataFrame) -> int:
    return int(runs["model"].nunique())


def fixed_variables(runs: pd.DataFrame) -> list[str]:
    """The variables that do not vary in the runs."""
    return [v for v, column in VARIABLES.items() if runs[column].max() <= runs[column].min() * (1 + FLAT)]


# ------------------------------------------------------------------------------------------------------- fitting


def _designs(form: Form, centre: dict[str, float], models: pd.DataFrame) -> list[Floats]:
    """For each term its [models, features] matrix."""
    logs = {v: np.log(models[VARIABLES[v]].to_numpy(float)) - centre[v] for v in form.variables}
    logs["1"] = np.ones(len(models))
    return [
        np.column_stack([np.prod([logs[v] for v in feature.split("*")], axis=0) for feature in term])
        for term in form.terms
    ]


def _log_loss(coefficients: Floats, designs: list[Floats]) -> tuple[Floats, Floats]:
    """ln of the sum of the terms, and its derivatives [models, coefficients]."""
    ends = np.cumsum([design.shape[1] for design in designs])[:-1]
    parts = np.array([d @ c for d, c in zip(designs, np.split(coefficients, ends), strict=True)])
    total = np.logaddexp.reduce(parts, axis=0)
    shares = np.exp(parts - total)
    return total, np.hstack([share[:, None] * design for share, design in zip(shares, designs, strict=True)])


def noise(runs: pd.DataFrame) -> float:
    """Standard deviation of ln(loss) between the seeds of a model, pooled."""
    groups = np.log(runs["value"]).groupby(runs["model"])
    freedom = len(runs) - groups.ngroups
    if freedom == 0:
        return SINGLE_SEED_NOISE
    return max(float(np.sqrt(((groups.count() - 1) * groups.var()).sum() / freedom)), 1e-4)


def fit(form: Form, runs: pd.DataFrame, weights: Floats | None = None, near: Law | None = None) -> Law:
    """The form's best coefficients for the runs (columns: model, value and those of `VARIABLES`).

    Args:
        weights: of each run; 1 by default.
        near: a fit to almost the same runs, to start from in place of `STARTS` starts.
    """
    centre = near.centre if near else {v: float(np.log(runs[column]).mean()) for v, column in VARIABLES.items()}
    designs, measured = _designs(form, centre, runs), np.log(runs["value"].to_numpy(float))
    features = [feature for term in form.terms for feature in term]
    is_scale = np.array([feature == "1" for feature in features])
    low = np.where(is_scale, measured.min() - FAINTEST, -STEEPEST)
    high = np.where(is_scale, measured.max() + 1, STEEPEST)
    # Huber's usual threshold: with normal errors it costs 5 % of the efficiency of least squares.
    loss, spread = _huber(np.ones(len(runs)) if weights is None else weights), near.noise if near else noise(runs)

    def from_(start: Floats) -> tuple[float, Floats]:
        found = least_squares(
            lambda c: _log_loss(c, designs)[0] - measured,
            np.clip(start, low + 1e-6, high - 1e-6),
            jac=lambda c: _log_loss(c, designs)[1],
            bounds=(low, high),
            loss=loss,
            f_scale=1.345 * spread,
            xtol=1e-5,
            ftol=1e-6,
            gtol=1e-6,
            max_nfev=12 if near else 60,
        )
        return float(found.cost), found.x

    starts = [near.coefficients] if near else list(_starts(is_scale, float(measured.mean())))
    return Law(form, centre, min((from_(start) for start in starts), key=lambda end: end[0])[1], spread)


def _starts(is_scale: NDArray[np.bool_], level: float) -> Iterable[Floats]:
    """Starts whose terms share the mean loss at random, with gentle exponents; always the same ones."""
    rng = np.random.default_rng(0)
    for _ in range(STARTS):
        start = rng.normal(0, 0.3, len(is_scale))
        start[is_scale] = level + np.log(rng.dirichlet(np.ones(is_scale.sum())))
        yield start


def _huber(weights: Floats) -> Callable[[Floats], Floats]:
    """SciPy's `loss`, weighted: Huber's function of squared residuals with its two derivatives."""

    def rho(squares: Floats) -> Floats:
        root = np.sqrt(np.maximum(squares, 1))
        inside = squares <= 1
        value = np.where(inside, squares, 2 * root - 1)
        return weights * np.array([value, 1 / root, np.where(inside, 0, -0.5 / root**3)])

    return rho


# ---------------------------------------------------------------------------------------------- choice, intervals


def held_out(law: Law, runs: pd.DataFrame) -> Floats:
    """For each model |ln(predicted) - ln(measured)| by a fit that has not seen any of its seeds."""
    errors = []
    for name, held in runs.groupby("model", sort=False):
        other = fit(law.form, runs[runs["model"] != name], near=law)
        errors.append(abs(float(np.mean(other.log_loss(held) - np.log(held["value"].to_numpy(float))))))
    return np.array(errors)


def trial(form: Form, runs: pd.DataFrame) -> Trial:
    """Fit a form, unless the runs cannot tell its coefficients."""
    form, models = form.without(fixed_variables(runs)), models_of(runs)
    if not form.variables and form.name != CONSTANT.name:
        return Trial(form, skipped="nothing that it depends on varies in the table")
    if models < form.needs:
        return Trial(form, skipped=f"{form.parameters} parameters need {form.needs} models; the table has {models}")
    logs = np.log(runs[[VARIABLES[v] for v in form.variables]].drop_duplicates().to_numpy(float))
    strengths = np.linalg.svd(logs - logs.mean(axis=0), compute_uv=False) if form.variables else np.ones(1)
    if strengths[-1] < ALONG_ONE_LINE * strengths[0]:
        names = ", ".join(form.variables)
        return Trial(form, skipped=f"{names} vary together in the table, so that their parts cannot be told apart")
    law = fit(form, runs)
    return Trial(form, law, held_out(law, runs))


def compare(runs: pd.DataFrame, forms: Iterable[Form] = FORMS) -> list[Trial]:
    """Every form's trial, the smallest held-out error first; those that were skipped come last.

    Raises:
        PipelineError: the runs are too few for any form that depends on anything.
    """
    trials = sorted((trial(form, runs) for form in forms), key=lambda t: t.error)
    if not any(t.law and t.form.variables for t in trials):
        fewest = min((t.form.needs for t in trials if t.form.variables), default=TOTAL.needs)
        reasons = "; ".join(f"{t.form.name}: {t.skipped}" for t in trials if t.skipped and t.form != CONSTANT)
        raise PipelineError(f"no law can be fitted, for which at least {fewest} models are needed ({reasons})")
    return trials


def draws(law: Law, runs: pd.DataFrame, models: pd.DataFrame, count: int, seed: int = 0) -> Floats:
    """ln of the loss that each of `count` bootstrap fits predicts for each row of `models`: [count, models].

    Weights are exponential for each model and, within it, for each seed. The spread is widened by
    sqrt(n / (n - p)), as the variance of a regression with p parameters on n models is.
    """
    rng = np.random.default_rng(seed)
    codes, names = pd.factorize(runs["model"])
    centre = law.log_loss(models)
    predicted = np.empty((count, len(models)))
    for i in range(count):
        by_seed = rng.exponential(size=len(runs))
        mean = np.bincount(codes, by_seed) / np.bincount(codes)
        weights = rng.exponential(size=len(names))[codes] * by_seed / mean[codes]
        predicted[i] = fit(law.form, runs, weights, near=law).log_loss(models)
    widened = np.sqrt(len(names) / (len(names) - law.form.parameters))
    return centre + widened * (predicted - centre)
