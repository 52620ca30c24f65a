"""Studies: which jobs a comparison of scales has, differences on shared items, and verdicts across scales."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis import paired, studies, study_charts, study_page
from pipeline.analysis.studies import Side
from pipeline.analysis.verdicts import FAILS, HOLDS, NOT_RUN, UNDECIDED, as_json
from pipeline.config.claims import Claims
from pipeline.config.studies import Studies
from pipeline.dag.dag import BASE, Dag
from pipeline.dag.job import Job
from pipeline.dag.study import StudyDag, load
from pipeline.errors import PipelineError
from tests.helpers.config import CONFIG, dump
from tests.helpers.synthetic import LOSSES_ONLY, dag_of, row, table_of
from tests.unit.test_config import grid_file

STUDY = {"title": "Do they differ?", "source": "this test", "scales": {"mini": "one", "smoke": "other"}}


# ------------------------------------------------------------------------------------------------------ the jobs


def test_a_study_has_the_evaluations_of_its_scales_and_what_they_need():
    study = load("studies/problems", CONFIG / "grid.yaml")
    assert isinstance(study, StudyDag)
    assert {scale: len(models) for scale, models in study.models.items()} == dict.fromkeys(study.study.scales, 16)
    own = study.page
    assert (own.folder.as_posix(), own.label) == ("studies/problems/study", "study")
    compared = study.inputs(own)
    assert {job.scale for job in compared.values()} == set(study.study.scales)
    trained = {"pretrain", "convert", "grpo"}
    assert {job.stage for job in compared.values()} == trained | set(study.dags["mini"].evaluations)
    assert not {job.stage for job in study.jobs} & {"table", "claims", "figures", "report"}
    assert len(set(study.jobs)) == len(study.jobs)
    for i, job in enumerate(study.jobs):
        before = {*study.inputs(job).values(), *study.gates(job)}
        assert before <= set(study.jobs[:i]), "upstream first, nothing is missing"
        if job != own:
            dag = study.dags[job.scale]
            assert (
                study.fingerprint(job) == dag.fingerprint(job) and study.point(job) == dag.point(job)
                if job.point
                else 1
            )


def test_only_the_models_that_are_compared_are_made():
    study = load("studies/tokens", CONFIG / "grid.yaml")
    assert {job.point for job in study.jobs if job.point} == {"d2048-E16-k2-7.1B-A1.5B"}
    depth = load("studies/depth", CONFIG / "grid.yaml")
    assert {len(models) for models in depth.models.values()} == {12}, "by their axes: other depths have other names"
    assert not set(depth.models["math"]) & set(depth.models["math-depth32"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": {"mini": "one", "smokes": "other"}}, "studies.yaml:.*there is no scale 'smokes'; .*smoke"),
        ({"points": ["d99-*"]}, r"studies.yaml:\d+: studies.one.points: no model of d99-\* is in two of the scales"),
        ({"scales": {"mini": "one"}}, "studies.one.scales"),
        ({"scales": {"mini": "one", "smoke": "one"}}, "studies.one: two scales are called 'one'"),
        ({"point": ["*"]}, "studies.one: unknown key 'point'; did you mean 'points'"),
    ],
)
def test_a_study_that_cannot_be_says_where(tmp_path, change, message):
    path = grid_file(tmp_path)
    (tmp_path / "studies.yaml").write_text(dump({"studies": {"one": STUDY | change}}))
    with pytest.raises(PipelineError, match=message):
        load("studies/one", path)
    with pytest.raises(PipelineError, match="there is no study 'ones'|studies.one"):
        load("studies/ones", path)


def test_a_change_of_one_scale_moves_the_study(tmp_path):
    def of(title: str, **changes: Any) -> str:
        dags = {"mini": Dag.load("mini", CONFIG / "grid.yaml"), "smoke": dag_of(**changes)}
        dag = StudyDag("one", Studies.model_validate({"studies": {"one": STUDY | {"title": title}}}), dags)
        return dag.fingerprint(dag.job("study"))

    smoke = dag_of().scale
    assert len({of("a"), of("b"), of("a", pretrain=smoke.pretrain.model_copy(update={"lr": 1e-3}))}) == 3


# --------------------------------------------------------------------------------------------------- differences


def test_the_bootstrap_gives_the_error_of_a_mean():
    values = np.random.default_rng(1).normal(0.3, 2.0, 400)
    assert paired.bootstrap_error(values) == pytest.approx(values.std() / math.sqrt(400), rel=0.05)
    assert paired.bootstrap_error(values) == paired.bootstrap_error(values)


def test_what_items_share_is_no_noise_of_a_difference():
    generator = np.random.default_rng(2)
    difficulty = generator.normal(0, 1, 500)
    before, after = difficulty, difficulty + generator.normal(0.1, 0.1, 500)
    ends = [before.mean()], [after.mean()]
    error = float(before.std() / math.sqrt(500))
    shared = paired.difference(*ends, [after - before], [])
    apart = paired.difference(*ends, [], [error, error])
    assert shared.value == apart.value and "paired" in shared.noise and "paired" not in apart.noise
    assert shared.stderr < 0.15 * apart.stderr
    assert shared.above() < 1e-6 < 0.05 < apart.above()


def test_seeds_are_blocks_and_items_the_least_error():
    wide = paired.difference([1.0, 1.0, 1.0], [2.0, 1.0, 3.0], [np.ones(50)] * 3, [])
    assert wide.df == 2 and wide.stderr == pytest.approx(1 / math.sqrt(3)) and wide.noise.startswith("3 seeds")
    agreed = np.random.default_rng(3).normal(0, 1, 50)
    floor = paired.difference([1.0] * 3, [1.1] * 3, [agreed] * 3, [])
    assert floor.stderr == paired.bootstrap_error(agreed), "seeds that agree by chance are no exact result"
    nothing = paired.difference([1.0], [2.0], [], [math.nan, math.nan])
    assert math.isnan(nothing.stderr) and nothing.above() == 1.0


def test_holm_corrects_for_all_tests():
    # By hand: 0.01 * 4, 0.02 * 3, 0.03 * 2 (not below the one before), 0.5.
    assert paired.holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert paired.holm([]) == []


def test_where_nothing_differs_few_differences_are_found():
    generator, found = np.random.default_rng(4), 0
    for _ in range(300):
        items = [generator.normal(0, 1, 60)]
        estimate = paired.difference([0.0], [items[0].mean()], items, [])
        found += 2 * min(estimate.above(), estimate.below()) < 0.05
    assert found / 300 < 0.09  # 5 % stated; four standard errors of 300 draws


# ------------------------------------------------------------------------------------------ sides that were made up

EXPERTS = [2, 4, 8, 16, 32]
MODELS = [{"hidden": 32, "experts": EXPERTS, "topk": 2, "seed": [0, 1, 2]}]
DAG = dag_of(*MODELS, **LOSSES_ONLY | {"taskloss": dag_of().scale.taskloss})


def side(label: str, slope: float, shift: float = 0.0, items: bool = False, same: str = "x") -> Side:
    """A scale whose reasoning loss has a slope along log2 E, with noise of the seeds."""
    noise = np.random.default_rng(ord(label))

    def metrics(job: Job, point: Any) -> dict[str, Any]:
        if job.stage != "taskloss":
            return {"train_loss": 2 - 0.1 * math.log2(point.experts) + noise.normal(0, 0.01), "max_logit_diff": 0.0}
        value = 1 + shift + slope * math.log2(point.experts) + noise.normal(0, 0.02)
        return {"results": [row("sums", "nll", value, 0.03)]}

    results = table_of(DAG, metrics).assign(label=label)
    kept = {}
    for one in results[results["stage"] == "taskloss"].to_dict("records") if items else []:
        values = one["value"] + np.linspace(-1, 1, 41)
        frame = pd.DataFrame({"task": "sums", "shots": 0, "options": "", "metric": "nll"}, index=range(41))
        kept["taskloss", one["point"], BASE] = frame.assign(item=range(41), value=values)
    return Side(label, label, results, kept, {"sums": {"corpus/sums": same}})


def claims(test: dict[str, Any]) -> Claims:
    rows = {"measure": "loss", "kind": "reasoning"}
    claim = {"claim": "it is so", "source": "here", "rows": rows, "test": test}
    return Claims.model_validate({"claims": {"one": claim}})


def verdict(test: dict[str, Any], *sides: Side) -> str:
    asked = claims(test)
    (judged,) = as_json(asked, studies.findings(asked, sides))["claims"]
    return str(judged["verdict"])


def test_a_difference_is_that_of_each_model_paired_where_items_are_the_same():
    frame = studies.differences([side("a", 0.1, items=True), side("b", 0.1, 0.5, items=True)])
    loss = frame[frame["metric"] == "nll"]
    assert sorted(loss["experts"]) == EXPERTS and (loss["seeds"] == 3).all()
    assert loss["difference"].to_numpy() == pytest.approx(0.5, abs=0.08) and loss["noise"].str.contains("paired").all()
    assert (loss["n"] == 41).all() and (loss["low"] < 0.55).all() and (loss["high"] > 0.45).all()
    assert (loss["corrected"] >= loss["p"]).all() and (loss["corrected"] < 0.05).all()
    trained = frame[frame["metric"] == "train_loss"]
    assert len(trained) == 5 and trained["n"].isna().all() and not trained["noise"].str.contains("items").any()

    other = studies.differences([side("a", 0.1, items=True), side("b", 0.1, 0.5, items=True, same="y")])
    assert other[other["metric"] == "nll"]["noise"].str.contains("not the same").all()
    assert set(other[other["metric"] == "nll"]["n"]) == {64}


def test_a_claim_across_scales_holds_if_it_holds_at_each():
    rises = {"kind": "across", "study": "s", "test": {"kind": "trend", "direction": "rises"}}
    assert verdict(rises, side("a", 0.1), side("b", 0.2)) == HOLDS
    assert verdict(rises, side("a", 0.1), side("b", -0.2)) == FAILS
    assert verdict(rises, side("a", 0.1), side("b", 0.0)) == UNDECIDED
    whole = side("b", 0.1)
    part = Side("b", "b", whole.results[whole.results["stage"] != "taskloss"], {}, {})
    assert verdict(rises, side("a", 0.1), part) == UNDECIDED, "a scale without the number says nothing"
    found = studies.findings(claims(rises), [side("a", 0.1), side("b", -0.2)])
    assert [(one.number.partition(":")[0], one.verdict) for one in found] == [("a", HOLDS), ("b", FAILS)]


def test_a_claim_between_scales_is_about_the_mean_difference():
    more = {"kind": "between", "study": "s", "direction": "rises"}
    assert verdict(more, side("a", 0.1), side("b", 0.1, 0.5)) == HOLDS
    assert verdict(more, side("a", 0.1), side("b", 0.1, -0.5)) == FAILS
    much = {"kind": "between", "study": "s", "value": 0.5, "tolerance": 0.2}
    assert verdict(much, side("a", 0.1), side("b", 0.1, 0.5)) == HOLDS
    assert verdict(much, side("a", 0.1), side("b", 0.1, 0.0)) == FAILS
    without = side("b", 0.1)
    none = Side("b", "b", without.results[without.results["stage"] != "taskloss"], {}, {})
    (finding,) = studies.findings(claims(more), [side("a", 0.1), none])
    assert (finding.verdict, finding.reason.partition(":")[0]) == (NOT_RUN, "b")


def test_the_page_says_what_differs_and_figures_are_of_what_two_scales_have(tmp_path):
    two = [side("a", 0.1), side("b", 0.1, 0.5)]
    drawn = {chart.name: chart for chart in study_charts.charts(two)}
    assert set(drawn) == {"study_loss", "study_task_loss"}
    (panel, _) = [panel for row in drawn["study_task_loss"].rows for panel in row]
    assert {line.label for line in panel.lines} == {"a", "b"} and all(line.band for line in panel.lines)
    text = study_page.readable(studies.differences(two))
    assert "d32-k2, E 8" in set(text["model"]) and "sums, task loss (nats per token)" in set(text["number"])

    # A model that one scale lacks breaks that scale's line.
    gap = Side("b", "b", two[1].results[two[1].results["experts"] != 8], {}, {})
    ((panel, *_),) = [row for row in study_charts.charts([two[0], gap])[0].rows]
    assert {line.label: line.segments for line in panel.lines} == {"a": [0] * 5, "b": [0, 0, 1, 1]}

    lone = Side("b", "b", two[1].results[two[1].results["stage"] == "pretrain"], {}, {})
    assert {chart.name for chart in study_charts.charts([two[0], lone])} == {"study_loss"}


def test_a_scale_and_a_study_are_found_by_name():
    assert isinstance(load("smoke", CONFIG / "grid.yaml"), Dag)
    assert load(None, CONFIG / "grid.yaml").name == "mini"
    with pytest.raises(PipelineError, match="there is no scale 'studies'"):
        load("studies", CONFIG / "grid.yaml")
