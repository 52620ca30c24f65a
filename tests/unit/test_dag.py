"""Which jobs a scale has, and what moves their fingerprints."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline.dag.dag import Dag, Job
from pipeline.dag.stages import STAGES
from pipeline.dag.survey import Survey, survey
from pipeline.errors import PipelineError
from pipeline.runner import execute
from tests.helpers.config import CONFIG, dump, whole_grid
from tests.unit.test_config import grid_file


def prints(path: Path) -> dict[Job, str]:
    dag = Dag.load("smoke", path)
    return {job: dag.fingerprint(job) for job in dag.jobs}


def changed(path: Path, before: dict[Job, str]) -> set[str]:
    return {job.label for job, value in prints(path).items() if before.get(job) != value}


def test_every_input_is_a_job_that_comes_earlier():
    dag = Dag.load("smoke", CONFIG / "grid.yaml")
    seen: set[Job] = set()
    for job in dag.jobs:
        assert set(dag.inputs(job).values()) <= seen
        seen.add(job)
    assert len({job.folder for job in seen}) == len(seen)


def test_base_and_post_trained_checkpoints_both_go_through_every_evaluation():
    dag = Dag.load("smoke", CONFIG / "grid.yaml")
    trained = [name for name, point in dag.points.items() if point.grpo]
    assert trained
    for stage in ("benchmark", "decode", "taskloss"):
        variants = {(job.point, job.variant) for job in dag.of(stage)}
        assert variants == {(p, "base") for p in dag.points} | {(p, "grpo") for p in trained}
        for job in dag.of(stage):
            made_by = dag.inputs(job)["checkpoint"].stage
            assert made_by == ("grpo" if job.variant == "grpo" else "convert")


def test_one_points_learning_rate_moves_that_points_cone_only(tmp_path):
    before = prints(grid_file(tmp_path))
    points = whole_grid()["scales"]["smoke"]["points"]
    dag = Dag.load("smoke", tmp_path / "grid.yaml")
    name = list(dag.points)[1]
    points[1] = points[1] | {"pretrain": {"lr": 1e-3}}
    moved = changed(grid_file(tmp_path, points=points), before)
    assert moved == {job.label for job in dag.jobs if job.point == name} | {"table", "claims", "figures", "report"}


def test_an_evaluation_setting_moves_that_evaluation_only(tmp_path):
    before = prints(grid_file(tmp_path))
    moved = changed(grid_file(tmp_path, decode__temperature=0.9), before)
    assert {label.split()[0] for label in moved} == {"decode", "table", "claims", "figures", "report"}


def test_a_source_moves_everything_made_of_it_and_not_the_others_corpus(tmp_path):
    before = prints(grid_file(tmp_path))
    sources = yaml.safe_load((tmp_path / "sources.yaml").read_text())
    sources["datasets"]["facts-smoke"]["exposures"] += 1
    (tmp_path / "sources.yaml").write_text(dump(sources))
    moved = changed(tmp_path / "grid.yaml", before)
    assert "corpus facts-smoke" in moved and "corpus sums-smoke" not in moved
    assert {"tokenizer", "tokenize sums-smoke"} <= moved  # the word tokenizer is trained on all sources


def test_title_or_description_is_no_reason_to_train_again(tmp_path):
    before = prints(grid_file(tmp_path))
    assert changed(grid_file(tmp_path, title="another"), before) == {"table", "claims", "figures", "report"}


def test_stage_version_is_part_of_identity(monkeypatch):
    dag = Dag.load("smoke", CONFIG / "grid.yaml")
    job = dag.of("pretrain")[0]
    before = dag.fingerprint(job)
    monkeypatch.setitem(STAGES, "tokenize", replace(STAGES["tokenize"], version=999))
    assert Dag.load("smoke", CONFIG / "grid.yaml").fingerprint(job) != before


def test_seeds_of_a_point_have_their_own_names_and_fingerprints(tmp_path):
    path = grid_file(tmp_path, points=[{"hidden": 32, "experts": 4, "topk": 2, "seed": [0, 1]}])
    dag = Dag.load("smoke", path)
    first, second = dag.points.values()
    assert second.name == f"{first.name}-s1"
    assert second.pretrain.seed == first.pretrain.seed + 1
    one, two = dag.of("pretrain")
    assert dag.fingerprint(one) != dag.fingerprint(two)
    assert replace(second, seed=0, pretrain=first.pretrain) == first


def publish(dag: Dag, job: Job, results: Path, metrics: dict[str, int]) -> None:
    """An artifact of the job as `execute` leaves it, with no files."""
    execute(dag, job, lambda ctx: metrics, results)


def test_what_records_say_is_stale_or_unsettled(tmp_path, monkeypatch):
    dag, results = Dag.load("smoke", grid_file(tmp_path)), tmp_path / "results"
    assert survey(dag, results) == Survey(frozenset(), frozenset(), frozenset(dag.jobs)), "nothing is made yet"
    corpora, tokenizer = dag.of("corpus"), dag.of("tokenizer")[0]
    for job in (*corpora, tokenizer):
        publish(dag, job, results, {"n": 1})
    assert survey(dag, results).stale == set()
    assert survey(dag, results).unsettled == set(dag.jobs) - {*corpora, tokenizer}

    with monkeypatch.context() as patch:
        patch.setitem(STAGES, "tokenizer", replace(STAGES["tokenizer"], version=99))
        assert survey(Dag.load("smoke", grid_file(tmp_path)), results).stale == {tokenizer}
    record = results / corpora[0].record
    whole = record.read_text()
    record.write_text(whole.replace('"n": 1', '"n": 2'))
    assert survey(dag, results).stale == {corpora[0], tokenizer}, "not the record that was written"
    record.write_text(whole)

    shutil.rmtree(results / corpora[0].folder)
    found = survey(dag, results)
    assert found.stale == set() and {corpora[0], tokenizer} <= found.unsettled, "tokenizer may have to be made again"
    publish(dag, corpora[0], results, {"n": 1})
    assert tokenizer not in survey(dag, results).unsettled, "it came out as it was"
    shutil.rmtree(results / corpora[0].folder)
    publish(dag, corpora[0], results, {"n": 2})
    assert survey(dag, results).stale == {tokenizer}, "it came out otherwise"


def test_every_stage_has_its_module_and_its_rule():
    root = CONFIG.parent
    modules = {path.stem for path in (root / "pipeline/stages").glob("*.py")} - {"__init__"}
    assert modules == set(STAGES)
    rules = "".join(path.read_text() for path in (root / "workflow/rules").glob("*.smk"))
    assert {name for name, stage in STAGES.items() if not stage.answer and f"rule {name}_job:" not in rules} == set()


def test_a_point_goes_through_the_evaluations_it_names(tmp_path):
    points = [{"hidden": 32, "experts": 4, "topk": 2, "grpo": True}]
    points += [{"hidden": 32, "experts": 8, "topk": 2, "seed": 1, "evaluate": ["taskloss"]}]
    all_of_them = Dag.load("smoke", grid_file(tmp_path, points=[p | {"evaluate": None} for p in points]))
    dag = Dag.load("smoke", grid_file(tmp_path, points=points))
    gone = {job.label for job in all_of_them.jobs} - {job.label for job in dag.jobs}
    named = next(name for name in dag.points if "E8" in name)
    assert gone == {f"benchmark {named} base", f"decode {named} base"}
    for job in dag.jobs:
        if job.point:
            assert dag.fingerprint(job) == all_of_them.fingerprint(job), "what is made is the same"


def test_an_evaluation_that_a_scale_does_not_have_cannot_be_named(tmp_path):
    points = [{"hidden": 32, "experts": 4, "topk": 2, "evaluate": ["tasklos"]}]
    with pytest.raises(PipelineError, match=r"points.0.evaluate: the scale has no evaluation 'tasklos'; did you mean"):
        Dag.load("smoke", grid_file(tmp_path, points=points))
