"""Curves of error against loss: known coefficients are found again, and too few checkpoints have no curve."""

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.fits import LEAST_POINTS, Fit, error_law


def checkpoints(models: int, each: int, noise: float, seed: int = 0) -> pd.DataFrame:
    """error = 0.95 - 0.25 exp(-3 (loss - 2)), with noise that a model's checkpoints share and noise of their own."""
    rng = np.random.default_rng(seed)
    rows = []
    for model in range(models):
        for loss in np.linspace(2.8, 1.9, each) + rng.normal(0, 0.02):
            error = 0.95 - 0.25 * np.exp(-3 * (loss - 2)) + rng.normal(0, noise)
            rows.append({"loss": loss, "error": error, "model": f"m{model}"})
    return pd.DataFrame(rows)


def fitted(rows: pd.DataFrame) -> Fit | None:
    return error_law(rows["loss"], rows["error"], rows["model"])


def test_known_coefficients_are_found():
    fit = fitted(checkpoints(8, 6, 0.0))
    assert fit is not None and (fit.points, fit.models) == (48, 8)
    a, b, c = (fit.coefficients[name][0] for name in "abc")
    assert (a, c) == pytest.approx((0.95, 3.0), abs=0.05)
    assert b == pytest.approx(0.25 * np.exp(-3 * (fit.centre - 2)), abs=0.02)
    assert fit.at(2.0) == pytest.approx(0.70, abs=0.005)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    held = 0
    for seed in range(60):
        fit = fitted(checkpoints(10, 6, 0.005, seed))
        assert fit is not None
        _, low, high = fit.coefficients["a"]
        held += low <= 0.95 <= high
    assert held >= 46  # a bootstrap over ten models says 95 % and is somewhat too narrow


def test_what_does_not_determine_a_curve_has_none():
    rows = checkpoints(8, 6, 0.0)
    assert fitted(rows.assign(error=0.3 + 0.2 * rows["loss"])) is None, "a straight line has any rate"
    assert fitted(rows.assign(error=rows["error"] + 0.1)) is None, "no error is above 1"
    assert fitted(rows.assign(error=(rows["loss"] > 2.3) * 0.5)) is None, "a step"


def test_too_few_checkpoints_or_models_have_no_curve():
    assert fitted(checkpoints(3, 2, 0.0)) is None and LEAST_POINTS > 3 * 2
    assert fitted(checkpoints(2, 20, 0.0)) is None
    assert fitted(checkpoints(4, 6, 0.0).assign(loss=2.0)) is None
