"""Claims get the verdict that was planted in the table, and tables with nothing planted seldom get one."""

import math

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis import verdicts
from pipeline.analysis.cells import Estimate
from pipeline.analysis.orders import _orders, _spearman
from pipeline.analysis.verdicts import FAILS, HOLDS, NOT_RUN, UNDECIDED, benjamini_hochberg
from tests.helpers.claims import ACCURACY, BITS, LOSS, claims, found, table

BITS_ROW, ACCURACY_ROW = ("taskloss", "recall", "stored_bits"), ("benchmark", "sums", "exact_match")
LOSS_ROW = ("pretrain", "pretrain", "train_loss")
DRAWS = 500


def size(row):
    return math.log2(row["experts"])


def up(row):
    return 0.1 * size(row)


def down(row):
    return 1 - up(row)


def flat(row):
    return 0.5


def valley(row):
    return 0.2 * (size(row) - 4) ** 2


def hill(row):
    return 1 - valley(row)


def lone(row):
    """Monotone but for the last model, which turns back."""
    return up(row) - 0.4 * (row["experts"] == 64)


TREND, MONOTONE = {"kind": "trend", "direction": "rises"}, {"kind": "monotone", "direction": "rises"}
RANK = {"kind": "rank", "direction": "falls", "along": "train_loss"}
TURNS = {"kind": "interior", "of": "minimum"}
PAIRED = {"kind": "paired", "axis": "topk", "direction": "rises"}
NUMBER = {"kind": "number", "value": 0.5, "tolerance": 0.1}


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(
    ("test", "value", "verdict"),
    [
        (TREND, up, HOLDS),
        (TREND, down, FAILS),
        (TREND, flat, UNDECIDED),
        (TREND | {"direction": "falls", "along": "density"}, up, HOLDS),
        (TREND | {"log": True}, lambda row: 2 ** size(row), HOLDS),
        (MONOTONE, up, HOLDS),
        (MONOTONE, down, FAILS),
        (MONOTONE, lone, FAILS),
        (MONOTONE, flat, UNDECIDED),
        (TURNS, valley, HOLDS),
        (TURNS, up, FAILS),
        (TURNS, flat, UNDECIDED),
        (TURNS | {"of": "maximum"}, hill, HOLDS),
        (TURNS | {"of": "maximum"}, down, FAILS),
        (NUMBER, flat, HOLDS),
        (NUMBER, lambda row: 0.9, FAILS),
        (NUMBER, lambda row: 0.6, UNDECIDED),
        (NUMBER | {"error": True, "value": 0.3, "of": "minimum"}, lambda row: 0.7 - valley(row), HOLDS),
    ],
)
def test_what_was_planted_in_a_series_is_found(seeds, test, value, verdict):
    results = table({BITS_ROW: value}, seeds=seeds, noise=0.005)
    finding = found(results, test, BITS)
    assert finding.verdict == verdict, finding
    assert finding.seeds == seeds and set(finding.rows) <= {f"{point}/base" for point in results["point"]}
    if finding.low is not None:
        assert finding.low <= finding.estimate <= finding.high


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(
    ("test", "value", "verdict"),
    [
        (PAIRED, lambda row: 0.1 * row["topk"], HOLDS),
        (PAIRED, lambda row: -0.1 * row["topk"], FAILS),
        (PAIRED, up, UNDECIDED),
        ({"kind": "paired", "axis": "topk", "margin": 0.1}, up, HOLDS),
        ({"kind": "paired", "axis": "topk", "margin": 0.1}, lambda row: 0.1 * row["topk"], FAILS),
        (TREND | {"along": "active_params"}, lambda row: 0.1 * row["topk"], HOLDS),
    ],
)
def test_pairs_differ_in_top_k_alone(seeds, test, value, verdict):
    results = table({BITS_ROW: value}, topk=(2, 4, 8), experts=(8, 16, 32), seeds=seeds, noise=0.01)
    assert found(results, test, BITS).verdict == verdict


def test_pairs_of_nearly_equal_size_may_differ_in_width():
    results = table({LOSS_ROW: lambda row: 1.0 + (row["topk"] == 8)}, widths=(32, 64), topk=(2, 8), seeds=1)
    near = {"kind": "paired", "axis": "topk", "margin": 0.1, "near": {"active_params": 1.8, "total_params": 1.8}}
    finding = found(results, near, LOSS)
    assert finding.verdict == FAILS and finding.estimate == pytest.approx(1)
    ratios = {point.partition("-")[0] for point in finding.rows}
    assert ratios == {"d32", "d64"}, "d32 with k 8 beside d64 with k 2"


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(("value", "verdict"), [(up, HOLDS), (down, FAILS)])
def test_rank_correlation_with_training_loss_is_within_series_or_over_all(seeds, value, verdict):
    results = table({LOSS_ROW: down, BITS_ROW: value}, topk=(2, 4), seeds=seeds, noise=0.001)
    assert found(results, RANK, BITS).verdict == verdict
    assert found(results, RANK | {"within": "scale"}, BITS).verdict == verdict


def test_an_optimum_that_moves_with_active_parameters():
    """The best number of experts falls from 64 to 4 as active parameters grow: the best density rises.

    Where it is 16 throughout the density k / E of the best rises too, but no more than it has to.
    """
    series = {"widths": (32, 64, 128), "topk": (1, 2, 4, 8), "experts": (4, 8, 16, 32, 64)}

    def best(row):
        return 6 - 0.8 * math.log2(row["active_params"] / 3072)

    moving = table({ACCURACY_ROW: lambda row: 1 - 0.01 * (size(row) - best(row)) ** 2}, **series)
    still = table({ACCURACY_ROW: lambda row: 1 - 0.01 * (size(row) - 4) ** 2}, **series)
    optimum = {"kind": "optimum", "of": "maximum", "direction": "rises"}
    assert found(moving, optimum, ACCURACY).verdict == HOLDS
    assert found(moving, optimum | {"direction": "falls"}, ACCURACY).verdict == FAILS
    assert found(still, optimum | {"at": "value"}, ACCURACY).verdict == UNDECIDED
    mechanical = found(still, optimum, ACCURACY)
    assert (mechanical.verdict, mechanical.estimate > 0.3) == (UNDECIDED, True)
    peak = {"kind": "peak", "of": "maximum", "at": "experts", "value": 16, "factor": 1.5}
    assert found(still, peak, ACCURACY).verdict == HOLDS
    assert found(still, peak | {"value": 128}, ACCURACY).verdict == FAILS
    assert found(moving, peak | {"value": 11}, ACCURACY).verdict == UNDECIDED


def test_shape_and_gain_of_post_training():
    both = {"variants": ("base", "grpo"), "experts": (2, 4, 8, 16, 32, 64), "noise": 0.001}
    kept = table({ACCURACY_ROW: lambda row: up(row) + 0.2 * (row["variant"] == "grpo")}, **both)
    turned = table({ACCURACY_ROW: lambda row: up(row) * (-1 if row["variant"] == "grpo" else 1)}, **both)
    shape, gain = {"kind": "shape", "axis": "variant"}, {"kind": "paired", "axis": "variant", "direction": "rises"}
    assert [found(kept, test, ACCURACY).verdict for test in (shape, gain)] == [HOLDS, HOLDS]
    assert [found(turned, test, ACCURACY).verdict for test in (shape, gain)] == [FAILS, FAILS]


def test_votes_are_compared_from_one_sample_to_the_most():
    numbers = {("decode", "sums", f"majority@{n}"): lambda row, n=n: up(row) + 0.1 * n for n in (1, 2, 4)}
    results = table(numbers, seeds=1)
    rows = {"measure": "majority", "kind": "reasoning"}
    finding = found(results, {"kind": "paired", "axis": "samples", "direction": "rises"}, rows)
    assert finding.verdict == HOLDS and finding.estimate == pytest.approx(0.3)
    assert found(results, {"kind": "shape", "axis": "samples"}, rows).estimate == pytest.approx(1)
    assert found(results, TREND, rows).number == "decode sums majority@4", "else the most samples count"


def test_worked_examples_are_compared_from_the_least_to_the_most():
    results = table({ACCURACY_ROW: flat}, seeds=1)
    more = results.assign(shots=4, entry="sums (4 shots)", value=results["value"] + 0.2)
    both = pd.concat([results.assign(entry="sums (0 shots)"), more])
    assert found(both, {"kind": "paired", "axis": "shots", "direction": "rises"}, ACCURACY).verdict == HOLDS
    assert {f.number for f in verdicts.verdicts(claims((TREND, ACCURACY)), both, "mini")} == {
        "benchmark sums (0 shots) exact_match",
        "benchmark sums (4 shots) exact_match",
    }, "elsewhere each way of asking is a finding"


def test_a_value_at_a_training_loss_is_interpolated():
    results = table({LOSS_ROW: lambda row: 4 - 0.5 * size(row), ACCURACY_ROW: up}, seeds=1)
    at = {"kind": "number", "value": 0.75, "tolerance": 0.05, "error": True, "at": 2.75}
    finding = found(results, at, ACCURACY)  # log2 E = 2.5 on the line
    assert (finding.estimate, finding.verdict) == (pytest.approx(0.75), HOLDS)
    outside = found(results, at | {"at": 5.0}, ACCURACY)
    assert (outside.verdict, outside.reason) == (NOT_RUN, "no models on both sides of training loss 5")


def test_densities_on_one_curve_and_beside_it():
    points = {"topk": (2, 4), "experts": (8, 16, 32, 64), "seeds": 1}
    loss = {LOSS_ROW: lambda row: 4 - 0.5 * size(row)}
    one = table(loss | {ACCURACY_ROW: up}, **points)
    two = table(loss | {ACCURACY_ROW: lambda row: up(row) + 0.3 * (row["density"] > 0.2)}, **points)
    test = {"kind": "spread", "tolerance": 0.1}
    assert found(one, test, ACCURACY).verdict == HOLDS
    assert found(two, test, ACCURACY).verdict == FAILS


def test_exact_values_need_no_correction():
    results = table({BITS_ROW: up})
    right = {"kind": "exact", "column": "total_params", "values": {"d32-E8-*": 32 * 32 * 10}}
    assert found(results, right, None).verdict == HOLDS
    wrong = found(results, right | {"values": {"d32-E8-*": 5}}, None)
    assert (wrong.verdict, wrong.reason[:38]) == (FAILS, "d32-E8-k2 has 10240, not 5; d32-E8-k2-")
    assert found(results, right | {"values": {"d99": 5}}, None).reason == "no point is named d99"


# ------------------------------------------------------------------------------------------------- what is not run


@pytest.mark.parametrize(
    ("test", "rows", "reason"),
    [
        (TREND, ACCURACY, "the table has no accuracy of reasoning tasks"),
        (TREND, BITS | {"series": ["d99*"]}, "the table has no bits of memorisation tasks, series d99*"),
        (TREND | {"along": "topk"}, BITS, "no line has 3 models along top-k"),
        (PAIRED, BITS, "no two models differ in top-k alone"),
        ({"kind": "shape", "axis": "variant"}, BITS, "no series has 3 models before and after (base and GRPO)"),
        (RANK, BITS, "no line has 3 models along training loss"),
        ({"kind": "optimum", "of": "minimum", "direction": "rises"}, BITS, "1 series with 3 or more models; an order"),
        ({"kind": "across", "study": "depth", "test": TREND}, BITS, "compares scales: snakemake --cores N --config"),
        ({"kind": "between", "study": "depth", "direction": "rises"}, BITS, "compares scales"),
    ],
)
def test_what_a_table_cannot_answer_is_not_run_and_says_why(test, rows, reason):
    finding = found(table({BITS_ROW: up}), test, rows)
    assert finding.verdict == NOT_RUN and finding.reason.startswith(reason)


def test_claims_about_other_scales_are_not_run():
    asked = claims((TREND, BITS), scales=["math*"])
    (finding,) = verdicts.verdicts(asked, table({BITS_ROW: up}), "mini")
    assert (finding.verdict, finding.reason) == (NOT_RUN, "is about scale math*")
    (finding,) = verdicts.verdicts(asked, table({BITS_ROW: up}), "math-released")
    assert finding.verdict == HOLDS


def test_without_any_error_bar_nothing_is_decided():
    finding = found(table({BITS_ROW: up}, seeds=1, stderr=math.nan), TURNS, BITS)
    assert (finding.verdict, finding.low) == (UNDECIDED, None) and finding.reason.startswith("no error is known")
    scatter = found(table({BITS_ROW: up}, seeds=1, stderr=math.nan, noise=0.01), TREND, BITS)
    assert (scatter.verdict, scatter.noise) == (HOLDS, "one seed, scatter about the line")


def test_one_seed_takes_the_wider_of_item_errors_and_scatter():
    smooth = found(table({BITS_ROW: up}, seeds=1), TREND, BITS)
    rough = found(table({BITS_ROW: up}, seeds=1, noise=0.1), TREND, BITS)
    assert (smooth.noise, rough.noise) == ("test items only", "one seed, scatter about the line")
    weights = np.array([-2, -1, 0, 1, 2]) / 10
    assert smooth.high - smooth.estimate == pytest.approx(1.96 * 0.01 * math.hypot(*weights), rel=1e-3)


def test_seeds_are_blocks():
    """What a seed has in common for all its models is no noise of a slope."""
    results = table({BITS_ROW: up})
    shifted = results.assign(
        value=results["value"] + 10 * results["seed"] + 0.001 * results["seed"] * results["experts"]
    )
    finding = found(shifted, TREND, BITS)
    slopes = [0.1 + 0.001 * seed * 14.4 for seed in range(3)]  # slope of E on log2 E over 4 ... 64
    assert (finding.verdict, finding.noise) == (HOLDS, "3 seeds")
    assert finding.estimate == pytest.approx(np.mean(slopes))
    assert finding.high - finding.estimate == pytest.approx(4.302653 * np.std(slopes, ddof=1) / math.sqrt(3), rel=1e-4)


# -------------------------------------------------------------------------------------------------------- parts


def test_p_values_of_estimates_are_those_of_t_and_of_the_normal_distribution():
    stats = pytest.importorskip("scipy.stats")
    for df in (2, 7, math.inf):
        estimate = Estimate(0.3, 0.2, df, "")
        assert estimate.above(0.1) == pytest.approx(stats.t.sf(1, df))
        assert estimate.below(0.1) == pytest.approx(stats.t.cdf(1, df))
        assert estimate.half_width == pytest.approx(0.2 * stats.t.ppf(0.975, df))
    assert Estimate(0.3, math.nan, 2, "").above() == 1


def test_rank_correlations_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for n in (3, 6, 9):
        x, y = rng.integers(0, 5, n).astype(float), rng.normal(size=n)
        assert _spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert len(_orders((5,))) == 120 and np.count_nonzero(_orders((5,)) >= 1 - 1e-9) == 1
    assert _orders((4, 5)).std() == pytest.approx(math.sqrt(1 / 3 + 1 / 4) / 2, rel=0.02)


def test_benjamini_hochberg_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    p = [0.01, 0.04, 0.03, 0.5, 0.005, 1.0]
    assert benjamini_hochberg(p) == pytest.approx(list(stats.false_discovery_control(p)))


def test_a_family_is_corrected_by_itself():
    many = claims(*[(TREND, BITS)] + [(TREND, ACCURACY)] * 9)
    results = table({BITS_ROW: up, ACCURACY_ROW: flat}, noise=0.01)
    first, *_ = verdicts.verdicts(many, results, "mini")
    assert first.corrected == pytest.approx(10 * first.p)
    one = many.claims["claim-0"].model_copy(update={"family": "other"})
    apart = many.model_copy(update={"claims": many.claims | {"claim-0": one}})
    first, *_ = verdicts.verdicts(apart, results, "mini")
    assert first.corrected == pytest.approx(first.p)


def test_a_claim_holds_if_all_findings_do_and_fails_if_one_does():
    def of(*found):
        return verdicts.overall([verdicts.Finding("a", verdict=verdict) for verdict in found])

    assert of(HOLDS, HOLDS, NOT_RUN) == HOLDS
    assert of(HOLDS, UNDECIDED) == UNDECIDED
    assert of(HOLDS, UNDECIDED, FAILS) == FAILS
    assert of(NOT_RUN) == NOT_RUN
