"""Claims: each comparison can come out either way, and what is within noise is said to be."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from pipeline.analysis import claims
from pipeline.analysis.claims import BETTER, WITHIN, WORSE
from pipeline.dag.dag import GRPO, Dag
from tests.helpers.synthetic import LOSSES_ONLY, PAIR, WAYS, dag_of, in_two_ways, row, table_of

SERIES = {"hidden": 32, "experts": [4, 8, 16, 32], "topk": 2}


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    return table_of(dag_of())


@pytest.fixture(scope="module")
def series() -> Dag:
    return dag_of(SERIES)


def trend(dag: Dag, numbers: Callable[[int], dict[str, Any]], topic: str = "Memorisation") -> claims.Finding:
    """The one finding of a topic when a model of E experts scores numbers(E)."""
    stage = "taskloss" if numbers(4)["metric"] == "nll" else "benchmark"

    def metrics(job, point):
        return {"results": [numbers(point.experts)] if job.stage == stage else []} if job.variant else {}

    (match,) = [t for t in claims.topics(table_of(dag, metrics)) if t.name == topic]
    (finding,) = match.findings
    return finding


@pytest.mark.parametrize(
    ("metric", "scores", "verdict", "remark"),
    [
        ("exact_match", (0.1, 0.2, 0.3, 0.4), BETTER, "Better at each of 3 steps (3 beyond noise)."),
        ("exact_match", (0.4, 0.3, 0.2, 0.1), WORSE, "Worse at each of 3 steps (3 beyond noise)."),
        ("exact_match", (0.2, 0.21, 0.22, 0.23), WITHIN, "Better at each of 3 steps (0 beyond noise)."),
        ("nll", (1.4, 1.3, 1.2, 1.1), BETTER, "Better at each of 3 steps (3 beyond noise)."),
        ("nll", (1.1, 1.2, 1.3, 1.4), WORSE, "Worse at each of 3 steps (3 beyond noise)."),
        ("nll", (1.1, 1.1, 1.1, 1.1), WITHIN, "Not monotone: better at 0 of 3 steps"),
    ],
)
def test_memorisation_can_come_out_either_way(series, metric, scores, verdict, remark):
    values = dict(zip(SERIES["experts"], scores, strict=True))
    finding = trend(series, lambda experts: row("recall", metric, values[experts]))
    assert finding.verdict == verdict
    assert finding.remark.startswith(remark)
    assert finding.difference.value == pytest.approx(scores[-1] - scores[0])
    assert finding.difference.stderr == pytest.approx(0.02 * 2**0.5)


@pytest.mark.parametrize(("last", "verdict"), [(0.3, WORSE), (0.49, WITHIN)])
def test_reasoning_that_peaks_is_judged_from_its_best_model(series, last, verdict):
    values = {4: 0.3, 8: 0.4, 16: 0.5, 32: last}
    finding = trend(series, lambda experts: row("sums", "exact_match", values[experts]), "Reasoning")
    assert finding.remark.startswith("Not monotone: better at 2 of 3 steps (2 beyond noise), worse at 1")
    assert f"Best at E=16; from there to the largest {last - 0.5:.3f} ± 0.028, {verdict}." in finding.remark


def test_all_items_wrong_is_not_certainty():
    """8 of 8 wrong has a sample error of 0; a model that gets 2 of 8 is still within noise of it."""
    right = {4: row("recall", "exact_match", 0.0, 0.0, 8), 8: row("recall", "exact_match", 0.25, 0.1, 8)}
    finding = trend(dag_of(PAIR), right.__getitem__)
    assert finding.before == "0.00 ± 0.11"
    assert finding.verdict == WITHIN


def test_difference_without_error_bars_is_not_judged(results):
    (loss,) = [topic for topic in claims.topics(results) if topic.name == "Loss"]
    assert {finding.verdict for finding in loss.findings} == {claims.UNKNOWN}
    assert loss.summary[-1] == "Without error bars, nothing here can be told from noise."


@pytest.mark.parametrize(("gain", "verdict"), [(0.1, BETTER), (-0.1, WORSE), (0.01, WITHIN)])
def test_grpo_voting_and_topk_can_come_out_either_way(gain, verdict):
    """The same gain after GRPO, from one sample to four, and from k=2 to k=4."""

    def metrics(job, point):
        base = 0.5 + gain * (job.variant == GRPO) + gain * (point.topk == 4)
        if job.stage == "benchmark":
            return {"results": [row("sums", "exact_match", base)]}
        if job.stage == "decode":
            return {"results": [row("sums", "majority@1", base), row("sums", "majority@4", base + gain)]}
        return {"results": []} if job.variant else {}

    dag = dag_of({"hidden": 32, "experts": 4, "topk": [2, 4], "grpo": True})
    topics = {topic.name: topic for topic in claims.topics(table_of(dag, metrics))}
    assert topics.keys() == {"Active parameters", "GRPO", "Self-consistency"}
    for topic in topics.values():
        assert {finding.verdict for finding in topic.findings} == {verdict}
        assert all(finding.difference.value == pytest.approx(gain) for finding in topic.findings)
        assert ("This run shows no effect here." in topic.summary) == (verdict == WITHIN)


def test_entries_of_one_task_have_comparisons_of_their_own():
    topics = {topic.name: topic for topic in claims.topics(table_of(dag_of(PAIR | {"grpo": True}), in_two_ways))}
    reasoning = {finding.what for finding in topics["Reasoning"].findings}
    assert {f"{name}, task loss (nats per token)" for name in WAYS["taskloss"]} < reasoning
    assert {"sums (4 shots), exact match", "sums (0 shots), exact match after GRPO"} < reasoning
    assert {finding.what for finding in topics["GRPO"].findings} >= {
        "sums (4 shots), exact match",
        "sums (0 shots), majority of 4 samples",
    }


def test_a_miniature_of_one_seed_says_so(results):
    text = " ".join(claims.cautions(results, claims.topics(results)))
    assert "50K to 74K total parameters" in text
    assert "neither confirms nor refutes the paper" in text
    assert "trained once" in text


def test_several_seeds_are_not_called_one():
    results = table_of(dag_of({"hidden": 32, "experts": 4, "topk": 2, "seed": [0, 1]}, **LOSSES_ONLY))
    text = " ".join(claims.cautions(results, claims.topics(results)))
    assert "Up to 2 seeds per model" in text and "trained once" not in text
