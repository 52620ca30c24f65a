"""The whole DAG at scale `smoke`, by real Snakemake and the real engines, and what Snakemake plans afterwards."""

import os
import time

import pandas as pd
import pytest

from pipeline.artifacts import store
from tests.helpers.repository import PLANTED, contents, planned, remove, snakemake, verb


def test_every_job_leaves_an_artifact_that_is_whole(smoke, dag):
    for job in dag.jobs:
        folder = smoke / "results" / job.folder
        record = store.read_record(folder)
        assert record.fingerprint == dag.fingerprint(job)
        assert {entry.name for entry in record.inputs} == set(dag.inputs(job))
        assert record.outputs and record.versions and record.wall_s > 0
        store.check_files(folder, record)
    assert not list((smoke / "results" / ".state").rglob("work-*")), "finished jobs leave no state behind"


def test_report_table_and_figures_are_there(smoke, dag):
    results = smoke / "results" / "smoke"
    assert "<html" in (results / "report.html").read_text()
    assert list((results / "figures").glob("*.png"))
    table = pd.read_parquet(results / "table" / "results.parquet")
    for stage in ("benchmark", "decode", "taskloss"):
        rows = table[table["stage"] == stage]
        expected = {(job.point, job.variant) for job in dag.of(stage)}
        assert set(zip(rows["point"], rows["variant"], strict=True)) == expected
        assert rows["value"].notna().all() and (rows["n"] > 0).all()


def test_converted_checkpoints_agree_with_megatron(smoke, dag):
    for job in dag.of("convert"):
        metrics = store.read_record(smoke / "results" / job.folder).metrics
        assert 0 <= metrics["max_logit_diff"] <= 1e-4


def test_vllm_transformers_and_megatron_agree_on_task_loss(smoke, dag):
    """Within 1e-4 nats a token, each computed from its own copy of the weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipeline.engines.megatron import model as megatron
    from pipeline.engines.megatron.weights import load_weights
    from pipeline.runtime.execution import Execution
    from pipeline.stages.taskloss import continuation, encode
    from pipeline.tasks.items import read_questions

    cpu = Execution(device="cpu")
    for job in dag.of("taskloss"):
        if job.variant != "base":
            continue
        rows = pd.read_parquet(smoke / "results" / job.folder / "items.parquet").set_index(["task", "item"])
        inputs = {name: smoke / "results" / up.folder for name, up in dag.inputs(job).items()}
        weights = smoke / "results" / "smoke" / job.point / "pretrain" / "checkpoint"
        tokenizer = AutoTokenizer.from_pretrained(inputs["checkpoint"])
        hugging_face = AutoModelForCausalLM.from_pretrained(inputs["checkpoint"], dtype=torch.float32).eval()
        with torch.inference_mode(), megatron.session(cpu) as device:
            model = megatron.build_model(dag.points[job.point], cpu, device, torch.float32).eval()
            load_weights(model, weights)
            for asked in dag.scale.taskloss.tasks:
                for question in read_questions(dag.items_folder(inputs, asked.task), asked):
                    ids, positions, _ = encode(tokenizer, question.prompt, continuation(question))
                    row, where = torch.tensor([ids]), torch.tensor(positions)
                    by_vllm = rows.loc[(question.task, question.item), "nll_nats"]
                    for logits in (hugging_face(row).logits, model(row, torch.arange(len(ids))[None], None)):
                        picked = logits[0].log_softmax(-1)[where - 1, row[0, where]]
                        assert abs(-picked.sum().item() - by_vllm) / len(positions) < 1e-4


def test_grpo_weights_reach_the_sampler(smoke, dag):
    assert dag.of("grpo")
    for job in dag.of("grpo"):
        assert store.read_record(smoke / "results" / job.folder).metrics["rollout_probs_diff"] < 0.02


def test_a_second_run_has_nothing_to_do(smoke):
    done = snakemake(smoke)
    assert "Nothing to be done" in done.stdout
    assert planned(smoke) == set()


def test_touched_files_and_comments_re_run_nothing(smoke):
    for path in (smoke / "results").rglob("record.json"):
        os.utime(path)
    module = smoke / "pipeline" / "stages" / "pretrain.py"
    module.write_text(module.read_text() + "\n# a comment\n")
    assert planned(smoke) == set()


@pytest.mark.parametrize("notes", ["Snakemake's notes", "no notes"])
def test_one_points_learning_rate_plans_that_points_cone_only(smoke, dag, notes):
    """Also where Snakemake has no notes of how the artifacts were made: copied results, stages run by hand."""
    metadata, grid = smoke / ".snakemake" / "metadata", smoke / "config" / "scales" / "mini.yaml"
    aside = metadata.with_name("metadata-aside")
    if notes == "no notes":
        metadata.rename(aside)
        now = time.time()
        for path in [*(smoke / "results").rglob("record.json"), smoke / "results" / "smoke" / "report.html"]:
            os.utime(path, (now, now))
    before = grid.read_text()
    line = "      - {hidden: 32, experts: 8, topk: 2}\n"
    head, smoke_scale = before.split("\n  smoke:\n")
    assert smoke_scale.count(line) == 1
    changed = smoke_scale.replace(line, line.replace("}", ", pretrain: {lr: 1.0e-3}}"))
    grid.write_text(head + "\n  smoke:\n" + changed)
    name = next(name for name, point in dag.points.items() if point.experts == 8)
    try:
        expected = {f"results/{job.record}" for job in dag.jobs if job.point == name}
        expected |= {f"results/smoke/{stage}/record.json" for stage in ("table", "claims", "figures", "report")}
        assert planned(smoke) == expected | {"results/smoke/report.html"}
    finally:
        grid.write_text(before)
        if aside.exists():
            if metadata.exists():
                metadata.rmdir()
            aside.rename(metadata)
    assert planned(smoke) == set()


def test_a_stage_or_a_point_can_be_asked_for_by_name(smoke, dag):
    for target in ("pretrain", "benchmark", "report", next(iter(dag.points))):
        done = snakemake(smoke, "--dry-run", target)
        assert "Nothing to be done" in done.stdout, done.stdout


def test_a_truncated_checkpoint_is_named_and_mended_by_verify(copy, dag):
    job, before = dag.of("taskloss")[0], contents(copy, dag)
    checkpoint = copy / "results" / dag.inputs(job)["checkpoint"].folder
    weights = checkpoint / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    remove(copy, job)
    done = snakemake(copy, f"results/{job.record}")
    assert done.returncode != 0
    name = checkpoint.relative_to(copy)
    assert f"error: {name / 'model.safetensors'}: {len(whole) - 100} bytes where {len(whole)} were" in done.stdout
    assert f"`python -m pipeline verify {name}` sets it aside" in done.stdout
    assert verb(copy, "verify", str(name)).returncode == 1
    done = snakemake(copy)
    assert done.returncode == 0, done.stdout
    assert contents(copy, dag) == before, "conversion is deterministic"


def test_a_wrong_key_is_refused_before_any_job(smoke):
    grid = smoke / "config" / "scales" / "mini.yaml"
    before = grid.read_text()
    grid.write_text(before.replace("  smoke:\n", "  smoke:\n    pre_train: {}\n", 1))
    try:
        done = snakemake(smoke)
        assert done.returncode != 0
        line = grid.read_text().splitlines().index("    pre_train: {}") + 1
        assert (
            f"config/scales/mini.yaml:{line}: scales.smoke: unknown key 'pre_train'; did you mean 'pretrain'?"
            in done.stdout
        )
        assert "Traceback" not in done.stdout
    finally:
        grid.write_text(before)


def test_no_secret_of_the_environment_is_in_any_file_of_a_run(smoke):
    """The run had tokens in its environment (tests/helpers/repository.py)."""
    found = [
        path.relative_to(smoke)
        for path in smoke.rglob("*")
        if path.is_file() and any(secret.encode() in path.read_bytes() for secret in PLANTED.values())
    ]
    assert not found


def test_artifacts_hold_no_pickle(smoke, dag):
    """Only formats that cannot hold code: what is not in an artifact cannot be loaded from one."""
    harmless = {".bin", ".idx", ".parquet", ".safetensors", ".json", ".jinja", ".csv", ".md", ".png", ".svg", ".html"}
    for job in dag.jobs:
        for entry in store.read_record(smoke / "results" / job.folder).outputs:
            path = smoke / "results" / job.folder / entry.path
            assert path.suffix in harmless, path
            start = path.read_bytes()[:4]
            assert start[:1] != b"\x80" and (path.suffix != ".bin" or start != b"PK\x03\x04"), f"{path}: a pickle"


def test_where_rules_write_logs_is_where_status_looks(smoke, dag):
    for job in dag.jobs:
        says = "already made" if job.stage in ("decode", "taskloss") else "begun"  # benchmark's job made them
        assert f"[{job.label}] {says}" in (smoke / job.log).read_text()
