"""Preflight: what does not fit is said before anything is trained, and nothing else moves for it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts.record import Record
from pipeline.dag.dag import STATE, Dag, Job
from pipeline.errors import PipelineError
from pipeline.runner import execute
from pipeline.stages import corpus, preflight, tokenizer
from pipeline.stages.preflight import Asked, load_tokenizer, measure, verdict
from tests.helpers.checkpoints import CPU
from tests.helpers.repository import copy_repository, planned, snakemake, verb
from tests.unit.test_config import grid_file

GATED = ("pretrain", "grpo", "benchmark", "decode", "taskloss")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A results folder with the corpora and the tokenizer of scale smoke."""
    folder = tmp_path_factory.mktemp("data")
    dag = Dag.load("smoke", grid_file(folder))
    for job in dag.of("corpus"):
        execute(dag, job, corpus.run, folder / "results", CPU)
    execute(dag, dag.of("tokenizer")[0], tokenizer.run, folder / "results", CPU)
    return folder / "results"


def check(data: Path, folder: Path, **changes: Any) -> Record:
    """Preflight of scale smoke with these changes, on these data."""
    dag = Dag.load("smoke", grid_file(folder, **changes))
    shutil.rmtree(data / "smoke" / "preflight", ignore_errors=True)
    (job,) = dag.of("preflight")
    return execute(dag, job, preflight.run, data, CPU)


def test_what_fits_is_counted(data, tmp_path):
    record = check(data, tmp_path)
    assert record.metrics["warnings"] == []
    rows = {(row["stage"], row["task"], row["split"]): row for row in record.metrics["tasks"]}
    assert {stage for stage, _, _ in rows} == {"benchmark", "decode", "taskloss", "grpo"}
    sums = rows["decode", "sums", "test"]
    assert (sums["items"], sums["room"], sums["limit"], sums["too_long"]) == (4, 40, 64, 0)
    # "question : 1 + 2 * 3 answer :" behind the beginning-of-text token
    items = pq.read_table(data / "smoke/data/sums-smoke/corpus/tasks/sums/test.parquet").to_pylist()[:4]
    longest = [1 + len(f"question : {item['question']} answer :".split()) for item in items]
    assert sums["longest"] == max(longest) and sums["item"] == longest.index(max(longest))
    spelt = [1 + len(f"question : {item['question']} answer : {item['answer']}".split()) for item in items]
    assert rows["taskloss", "sums", "test"]["longest"] >= max(spelt)
    assert json.loads((data / "smoke/preflight/tasks.json").read_text()) == record.metrics["tasks"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"decode__max_tokens": 60},
            r"decode.tasks.0: 'sums' \(test\): 4 of 4 items do not fit: item \d is the longest, \d+ tokens and 60 to "
            r"write, and model.sequence_length is 64; lower decode.max_tokens or give fewer shots",
        ),
        (
            {"taskloss__max_length": 8},
            r"taskloss.tasks.1: 'sums' \(test\): 8 of 8 items do not fit: .* taskloss.max_length is 8; raise",
        ),
        ({"benchmark__max_length": 50}, r"benchmark.tasks.2: 'sums' \(test\): 8 of 8 items .*; raise benchmark"),
        ({"grpo__max_prompt": 5}, r"grpo: 'sums' \(train\): 0 questions fit, fewer than 8 \(grpo.prompts\): item"),
        (
            {"grpo__prompts": 2000, "grpo__mini_batch": 2000},
            r"grpo: 'sums' \(train\): \d+ questions fit, fewer than 2000",
        ),
        (
            {"taskloss__tasks": [{"task": "sums", "shots": 2000}]},
            r"taskloss.tasks.0: .*train.parquet: \d+ items, fewer than 2000 for 2000 shots",
        ),
        ({"decode__tasks": [{"task": "sums", "shots": 9}]}, r"decode.tasks.0: 'sums' \(test\): .* fewer shots"),
    ],
)
def test_what_cannot_fit_is_an_error_with_task_item_key_and_number(data, tmp_path, changes, said):
    with pytest.raises(PipelineError, match=said):
        check(data, tmp_path, **changes)


def test_everything_wrong_is_said_at_once(data, tmp_path):
    with pytest.raises(PipelineError) as error:
        check(data, tmp_path, decode__max_tokens=60, taskloss__max_length=6, grpo__max_prompt=5)
    said = str(error.value)
    assert all(f"{key}: '{task}'" in said for key, task in (("decode.tasks.0", "sums"), ("taskloss.tasks.0", "recall")))
    assert "taskloss.tasks.1: 'sums'" in said and "grpo: 'sums' (train)" in said and "grpo: 'sums' (test)" in said


def test_what_will_be_cut_or_left_out_is_a_warning_with_the_count(data, tmp_path):
    record = check(data, tmp_path, benchmark__max_length=59, grpo__max_prompt=8)
    cut, left = record.metrics["warnings"][0], record.metrics["warnings"][1]
    rows = {(row["stage"], row["task"], row["split"]): row for row in record.metrics["tasks"]}
    assert f"{rows['benchmark', 'sums', 'test']['too_long']} of 8 items will be cut from the left" in cut
    assert f"{rows['grpo', 'sums', 'train']['too_long']} of" in left and "will be left out" in left
    assert "grpo.max_prompt is 8" in left and rows["grpo", "sums", "train"]["too_long"] > 0


def test_lm_evals_other_tasks_are_said_to_be_unchecked(data, tmp_path):
    record = check(data, tmp_path, benchmark__tasks=[{"task": "arc_easy"}])
    row = {"stage": "benchmark", "task": "arc_easy", "unchecked": "its prompts are lm-eval's own"}
    assert row in record.metrics["tasks"]


def test_text_that_the_tokenizer_does_not_know_is_an_error(data):
    words, unknown = load_tokenizer(data / "smoke/data/tokenizer/tokenizer.json")
    texts = ["Janet has three ducks .", "How many eggs does she sell ?"]
    lengths, share = measure(words, unknown, [words.token_to_id(tokenizer.EOD)], texts)
    assert lengths == [6, 8] and share > 0.5
    asked = Asked("decode", "decode.tasks.0", "gsm8k", "test", texts, 1, 64, "model.sequence_length", None, None)
    error, _ = verdict(asked, lengths, share)
    assert error and "of its tokens are unknown to the tokenizer; choose another data.tokenizer" in error
    error, _ = verdict(Asked("decode", "k", "gsm8k", "test", [], 1, 64, "model.sequence_length", None, None), [], 0.0)
    assert error and "there are no items" in error


def test_what_a_tokenizer_file_says_of_inference_does_not_hide_a_long_text(data, tmp_path):
    content = json.loads((data / "smoke/data/tokenizer/tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert measure(*load_tokenizer(tmp_path / "tokenizer.json"), [], ["question : 1 + 2 answer :"])[0] == [7]


def test_prompts_are_counted_as_stages_send_them(data, tmp_path):
    """With the token that `add_bos` puts first, and in GRPO's own form."""
    changes = {"decode__add_bos": False, "grpo__prompt": "bare"}
    plain, changed = (check(data, tmp_path, **some).metrics["tasks"] for some in ({}, changes))
    longest = [{(row["stage"], row["split"]): row["longest"] for row in rows} for rows in (plain, changed)]
    assert longest[1]["decode", "test"] == longest[0]["decode", "test"] - 1
    assert longest[1]["grpo", "train"] == longest[0]["grpo", "train"] - 4  # without "question :" and "answer :"


# ------------------------------------------------------------------------------------------------------ the DAG


def test_everything_that_costs_waits_for_it_and_nothing_reads_it(tmp_path):
    dag = Dag.load("smoke", grid_file(tmp_path))
    gate = Job("preflight", "smoke")
    assert dag.of("preflight") == [gate]
    for job in dag.jobs:
        assert dag.gates(job) == ([gate] if job.stage in GATED else [])
        assert gate not in dag.inputs(job).values()
        assert all(dag.jobs.index(one) < dag.jobs.index(job) for one in dag.gates(job))


def test_only_what_bears_on_the_prompts_is_its_identity(tmp_path):
    def identity(**changes: Any) -> str:
        dag = Dag.load("smoke", grid_file(tmp_path, **changes))
        return dag.fingerprint(dag.of("preflight")[0])

    before = identity()
    for changes in (
        {"decode__temperature": 0.5},
        {"grpo__lr": 1e-5},
        {"pretrain__lr": 1e-3},
        {"benchmark__dtype": "bf16"},
    ):
        assert identity(**changes) == before, changes
    for changes in (
        {"decode__max_tokens": 30},
        {"grpo__max_prompt": 10},
        {"benchmark__max_length": 60},
        {"model__sequence_length": 128},
    ):
        assert identity(**changes) != before, changes


def test_adopted_checkpoints_with_tokenizers_of_their_own_are_looked_at_one_by_one(tmp_path):
    point, adopt = {"hidden": 32, "experts": 4, "topk": 2}, {"path": "a/{name}"}
    points = [
        point,
        point | {"tag": "own", "adopt": adopt},
        point | {"tag": "scales", "adopt": adopt | {"tokenizer": "scale"}},
    ]
    dag = Dag.load("smoke", grid_file(tmp_path, points=points))
    trained, own, scales = dag.points
    assert dag.of("preflight") == [Job("preflight", "smoke"), Job("preflight", "smoke", point=own)]
    assert dag.gates(Job("pretrain", "smoke", point=trained)) == [Job("preflight", "smoke")]
    assert dag.gates(Job("decode", "smoke", point=scales, variant="base")) == [Job("preflight", "smoke")]
    assert dag.gates(Job("decode", "smoke", point=own, variant="base")) == [Job("preflight", "smoke", point=own)]
    inputs = dag.inputs(Job("preflight", "smoke", point=own))
    assert inputs["checkpoint"] == Job("adopt", "smoke", point=own) and "tokenizer" not in inputs


def test_a_scale_that_asks_nothing_has_none(tmp_path):
    points = [{"hidden": 32, "experts": 4, "topk": 2}]
    dag = Dag.load("smoke", grid_file(tmp_path, benchmark=None, decode=None, taskloss=None, points=points))
    assert dag.of("preflight") == [] and dag.gates(dag.of("pretrain")[0]) == []


# --------------------------------------------------------------------------------------------- through Snakemake


def edit(folder: Path, *changes: tuple[str, str]) -> None:
    """Change scale smoke in a copy of the repository."""
    grid = folder / "config" / "scales" / "mini.yaml"
    head, smoke = grid.read_text().split("\n  smoke:\n")
    for old, new in changes:
        assert old in smoke, old
        smoke = smoke.replace(old, new, 1)
    grid.write_text(head + "\n  smoke:\n" + smoke)


def test_a_misspelt_task_and_an_infinite_number_are_found_by_a_dry_run(tmp_path):
    copy_repository(tmp_path)
    scales = tmp_path / "config" / "scales" / "mini.yaml"
    whole = scales.read_text()
    edit(tmp_path, ("decode: {tasks: [{task: sums,", "decode: {tasks: [{task: smus,"))
    for said in (snakemake(tmp_path, "--dry-run"), verb(tmp_path, "plan", "--scale", "smoke")):
        text = said.stdout + said.stderr
        assert said.returncode == 1 and "Traceback" not in text
        assert ": scales.smoke.decode.tasks.0.task: 'smus' is not a task of this project; did you mean" in text
    scales.write_text(whole)
    edit(tmp_path, ("pretrain: {steps: 20,", "pretrain: {weight_decay: .inf, steps: 20,"))
    done = snakemake(tmp_path, "--dry-run")
    assert done.returncode == 1 and "Traceback" not in done.stdout
    assert ": scales.smoke.pretrain.weight_decay: Input should be a finite number (found inf)" in done.stdout


def test_a_prompt_that_is_too_long_stops_the_run_before_any_training(tmp_path):
    copy_repository(tmp_path)
    edit(
        tmp_path,
        ("taskloss: {tasks: [{task: recall, limit: 8}", "taskloss: {max_length: 6, tasks: [{task: recall, limit: 8}"),
        ("samples: 4}", "samples: 4, max_tokens: 60}"),
    )
    done = snakemake(tmp_path)
    assert done.returncode == 1
    assert "taskloss.tasks.0: 'recall' (test): 8 of 8 items do not fit" in done.stdout
    assert "decode.tasks.0: 'sums' (test): 4 of 4 items do not fit" in done.stdout
    begun = {path.parent.name for path in (tmp_path / "results" / STATE).rglob("history.jsonl")}
    assert begun == {"corpus", "tokenizer", "tokenize", "preflight"}
    said = verb(tmp_path, "status", "--scale", "smoke").stdout
    assert "preflight: scale 'smoke': decode.tasks.0: 'sums'" in said


def test_a_missing_or_stale_preflight_trains_nothing_again(tmp_path):
    """On records alone: every artifact is published empty."""
    copy_repository(tmp_path)
    dag, results = Dag.load("smoke", tmp_path / "config" / "grid.yaml"), tmp_path / "results"
    for job in dag.jobs:
        execute(dag, job, lambda ctx: {}, results, CPU)
    (results / "smoke" / "report.html").symlink_to("report/report.html")
    (results / "smoke" / "report" / "report.html").write_text("")
    assert planned(tmp_path) == set()
    shutil.rmtree(results / "smoke" / "preflight")
    assert planned(tmp_path) == {"results/smoke/preflight/record.json"}
    edit(tmp_path, ("samples: 4}", "samples: 4, max_tokens: 30}"))
    execute(dag, dag.of("preflight")[0], lambda ctx: {}, results, CPU)
    stages = {path.split("/")[2 if path.count("/") == 3 else 3] for path in planned(tmp_path) if "record" in path}
    assert stages == {"preflight", "decode", "table", "claims", "figures", "report"}


def test_items_of_grpo_are_those_that_fit(data):
    """The count of questions left out is that of the stage itself."""
    from pipeline.stages.grpo import prompt_rows

    items = data / "smoke/data/sums-smoke/corpus/tasks/sums/train.parquet"
    recipe = Dag.load("smoke").scale.grpo.model_copy(update={"max_prompt": 8})
    table, left_out = prompt_rows(items, data / "smoke/data/tokenizer", recipe)
    assert isinstance(table, pa.Table)
    words, unknown = load_tokenizer(data / "smoke/data/tokenizer/tokenizer.json")
    questions = pq.read_table(items)["question"].to_pylist()
    first = [words.token_to_id(tokenizer.EOD)]
    lengths, _ = measure(words, unknown, first, [f"question : {question} answer :" for question in questions])
    assert sum(length > 8 for length in lengths) == left_out > 0
