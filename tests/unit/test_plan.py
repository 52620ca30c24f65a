"""`python -m pipeline plan`: costs, what remains, refusals, calibration, and that it writes nothing."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import __main__ as command_line
from pipeline.artifacts import store
from pipeline.artifacts.record import Record
from pipeline.config.scales import load_grid
from pipeline.dag.dag import Dag, Job
from pipeline.dag.stages import STAGES
from pipeline.planning import costs, cpu
from pipeline.planning.forecast import measured_mfu

CONFIG = Path(__file__).parents[2] / "config"


def plan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[int, str]:
    """Exit status and output of the command, given to the program's own `main`."""
    monkeypatch.setattr(sys, "argv", ["pipeline", "plan", "--config", str(CONFIG / "grid.yaml"), *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    return int(end.value.code or 0), capsys.readouterr().out


def finished(dag: Dag, job: Job, results: Path, device: str, flops_a_second: float, **changes: Any) -> None:
    """Write a record of a finished job that ran at a speed."""
    point = dag.points[job.point or ""]
    record = Record(
        stage=job.stage,
        stage_version=1,
        scale=job.scale,
        point=job.point,
        variant=job.variant,
        source=None,
        fingerprint=dag.fingerprint(job),
        settings={},
        inputs=[],
        outputs=[],
        metrics={"tokens": point.tokens},
        timing={"tokens_per_s": flops_a_second / point.flops_per_token},
        versions={},
        commit=None,
        hardware={},
        execution={"device": device, "ranks": 1},
        started="2026-01-01T00:00:00",
        wall_s=1.0,
        cpu_s=1.0,
        peak_rss_mb=1.0,
    )
    store.write_atomic(results / job.record, record.model_copy(update=changes).model_dump_json())


def test_the_papers_grid_is_planned_in_65_rows(tmp_path, capsys, monkeypatch):
    status, text = plan(capsys, monkeypatch, "--scale", "math", "--results", tmp_path, "--json")
    planned = json.loads(text)
    assert status == 0 and len(planned["points"]) == 65
    largest = planned["points"]["d2048-E128-k16-52.2B-A7.1B"]
    (pretrain,) = (job for job in largest["jobs"] if job["stage"] == "pretrain")
    # docs/PAPER.md, grid: 43.1 GFLOPs per token, 125 B tokens; validation adds 0.7 %.
    assert pretrain["flops"] == pytest.approx(43.100e9 * 125.0e9, rel=0.01)
    assert planned["mfu"] == {"512": 0.41, "1024": 0.46, "2048": 0.55}, "measured, docs/PERFORMANCE.md"
    assert pretrain["gpu_hours"] == pytest.approx(pretrain["flops"] / (989e12 * 0.55) / 3600)
    assert pretrain["layout"] == {"nodes": 16, "gpus_per_node": 8, "tp": 1, "pp": 4, "ep": 8}
    assert all(job["remains"] for job in largest["jobs"])
    _, text = plan(capsys, monkeypatch, "--scale", "math", "--results", tmp_path)
    rows = [line.split()[0] for line in text.splitlines() if line.startswith("d")]
    assert [row for row in rows if row != "disk:" and row in planned["points"]] == list(planned["points"])


@pytest.mark.parametrize("scale", load_grid(CONFIG / "grid.yaml").scales)
def test_every_scale_of_the_project_can_be_planned_and_fits(scale, tmp_path, capsys, monkeypatch):
    status, text = plan(capsys, monkeypatch, "--scale", scale, "--results", tmp_path)
    assert status == 0 and f"remaining: {len(Dag.load(scale, CONFIG / 'grid.yaml').jobs)} jobs, " in text


def test_planning_writes_nothing(tmp_path, capsys, monkeypatch):
    dag = Dag.load("smoke", CONFIG / "grid.yaml")
    finished(dag, dag.of("pretrain")[0], tmp_path, "cpu", 1e9)

    def tree() -> dict[str, tuple[int, bytes]]:
        return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()}

    before = tree()
    plan(capsys, monkeypatch, "--scale", "smoke", "--results", tmp_path, "--gpu", "cpu")
    assert tree() == before and len(before) == 1


def test_only_what_remains_is_counted(tmp_path, capsys, monkeypatch):
    dag = Dag.load("smoke", CONFIG / "grid.yaml")
    first, second = dag.of("pretrain")
    finished(dag, first, tmp_path, "cpu", 1e9)
    finished(dag, second, tmp_path, "cpu", 1e9, fingerprint="of other settings")
    arguments = ("--scale", "smoke", "--results", tmp_path, "--gpu", "cpu")
    planned = json.loads(plan(capsys, monkeypatch, *arguments, "--json")[1])
    left = {
        name: [job["remains"] for job in row["jobs"] if job["stage"] == "pretrain"]
        for name, row in planned["points"].items()
    }
    assert left == {first.point: [False], second.point: [True]}
    assert planned["remaining"]["jobs"] == len(dag.jobs) - 1


def test_records_calibrate_and_predicted_stands_beside_actual(tmp_path, capsys, monkeypatch):
    """The second job runs at half the first's speed, so it is predicted from the first in half its time."""
    dag = Dag.load("mini", CONFIG / "grid.yaml")
    first, second, third, *_ = dag.of("pretrain")
    for job, speed in ((first, 2e12), (second, 1e12)):
        finished(dag, job, tmp_path, "cuda", speed, hardware={"gpu": "NVIDIA H100 80GB HBM3"})
    arguments = ("--scale", "mini", "--results", tmp_path, "--gpu", "h100")
    text = plan(capsys, monkeypatch, *arguments)[1]
    assert "pretrain: 1.5e+12 FLOP/s per GPU by 2 records" in text
    assert f"  {second.label}: predicted" in text and "(-50%)" in text and "(+100%)" in text
    planned = json.loads(plan(capsys, monkeypatch, *arguments, "--json")[1])
    (job,) = (job for job in planned["points"][third.point]["jobs"] if job["stage"] == "pretrain")
    assert job["gpu_hours"] == pytest.approx(job["flops"] / 1.5e12 / 3600)


# ------------------------------------------------------------------------------------------------------- on CPUs


def hours_of(planned: dict[str, Any], point: str | None, stage: str) -> float:
    (job,) = (job for job in planned["points"][point]["jobs"] if job["stage"] == stage)
    return job["cpu_hours"]


@pytest.mark.parametrize(("scale", "least", "most"), [("mini", 600, 1200), ("smoke", 90, 240)])
def test_a_small_scale_is_planned_in_minutes_of_this_machine(scale, least, most, tmp_path, capsys, monkeypatch):
    """Without records. docs/VALIDATION.md has what they took on two cores."""
    monkeypatch.setattr("pipeline.planning.cpu.cores", lambda: 2)
    arguments = ("--scale", scale, "--results", tmp_path)
    status, text = plan(capsys, monkeypatch, *arguments)
    assert status == 0 and re.search(
        r"^remaining: \d+ jobs, [\d.]+ min of one process: [\d.]+ min with --cores 2", text, re.M
    )
    assert "GPU-hours" not in text and "e-0" not in text and "?" not in text and "MFU" not in text
    total = json.loads(plan(capsys, monkeypatch, *arguments, "--json")[1])["remaining"]
    assert least < total["elapsed_hours"] * 3600 < most
    assert total["elapsed_hours"] < total["cpu_hours"] < 2 * total["elapsed_hours"], "two processes at a time"


def test_records_of_cpus_make_the_plan_one_for_cpus_and_pace_it(tmp_path, capsys, monkeypatch):
    """Pre-training took twice the stated time, so it is planned with that; other stages stay as they are stated."""
    dag = Dag.load("mini", CONFIG / "grid.yaml")
    first, second, third, *_ = dag.of("pretrain")
    arguments = ("--scale", "mini", "--results", tmp_path)
    before = json.loads(plan(capsys, monkeypatch, *arguments, "--json")[1])
    seconds = hours_of(before, first.point, "pretrain") * 3600
    for job in (first, second):
        point = dag.points[job.point]
        work = costs.flops(dag.scale, point, "pretrain")
        finished(dag, job, tmp_path, "cpu", work / (2 * seconds - STAGES["pretrain"].on_cpu.start_s))
    monkeypatch.setattr("pipeline.planning.forecast.gpus_here", lambda: ("GPU 0: NVIDIA H100",))  # for other scales
    text = plan(capsys, monkeypatch, *arguments)[1]
    assert "pretrain: 2.00 times the stated time by 2 records" in text and text.count("(+0%)") == 2
    after = json.loads(plan(capsys, monkeypatch, *arguments, "--json")[1])
    assert hours_of(after, third.point, "pretrain") == pytest.approx(2 * seconds / 3600)
    assert hours_of(after, third.point, "decode") == hours_of(before, third.point, "decode")


@pytest.mark.parametrize(
    ("scale", "gpus", "device"),
    [
        ("mini", (), "cpu"),
        ("mini", ("GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-1)",), "a100"),
        ("mini", ("GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-1)",), "h200"),
        ("math", (), "h200"),
        ("math-released", ("GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)",), "h200"),
    ],
)
def test_the_device_is_what_the_scale_would_run_on(scale, gpus, device, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.planning.forecast.gpus_here", lambda: gpus)
    assert (
        json.loads(plan(capsys, monkeypatch, "--scale", scale, "--results", tmp_path, "--json")[1])["device"] == device
    )


def test_elapsed_time_is_that_of_the_longest_chain_or_of_the_cores():
    dag = Dag.load("smoke", CONFIG / "grid.yaml")
    hours = {job: 1.0 for job in dag.jobs}
    chain = 10  # corpus, tokenizer, tokenize, pretrain, convert, grpo, an evaluation, table, figures, report
    assert cpu.elapsed_hours(dag, hours, 1) == len(dag.jobs)
    assert cpu.elapsed_hours(dag, hours, 100) == chain
    assert chain < cpu.elapsed_hours(dag, hours, 2) < len(dag.jobs)
    assert cpu.elapsed_hours(dag, {}, 2) == 0
    assert cpu.elapsed_hours(dag, {job: 1.0 for job in dag.of("report")}, 2) == 1, "what it reads is there"


def test_a_model_beyond_the_machines_memory_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.planning.cpu.memory_bytes", lambda: 4e9)
    status, text = plan(capsys, monkeypatch, "--scale", "mini", "--results", tmp_path)
    assert status == 1 and re.search(r"grpo \S+: needs 6 GB of memory, and this machine has 4 GB", text)


def test_a_budget_on_cpus_is_in_hours_of_processes(tmp_path, capsys, monkeypatch):
    arguments = ("--scale", "mini", "--results", tmp_path, "--budget-gpu-hours")
    assert plan(capsys, monkeypatch, *arguments, 1)[0] == 0
    status, text = plan(capsys, monkeypatch, *arguments, 0.1)
    assert status == 1 and "hours of CPU processes, above --budget-gpu-hours 0.1" in text


def test_records_of_another_kind_of_device_calibrate_nothing(tmp_path, capsys, monkeypatch):
    dag = Dag.load("mini", CONFIG / "grid.yaml")
    finished(dag, dag.of("pretrain")[0], tmp_path, "cpu", 2e9)
    finished(dag, dag.of("pretrain")[1], tmp_path, "cuda", 2e12, hardware={"gpu": "NVIDIA A100-SXM4-80GB"})
    for gpu, records in (("h100", 0), ("a100", 1)):
        text = plan(capsys, monkeypatch, "--scale", "mini", "--results", tmp_path, "--gpu", gpu)[1]
        assert text.count("actual") == records


def test_a_layout_beyond_the_gpus_memory_is_refused_with_one_that_fits(tmp_path, capsys, monkeypatch):
    status, text = plan(capsys, monkeypatch, "--scale", "math", "--results", tmp_path, "--gpu", "h100")
    assert status == 1
    assert "pretrain d2048-E16-k16-7.1B-A7.1B: layout 16x8 needs 116 GB on a GPU" in text
    assert "; would fit: 16x8 tp2" in text


def test_a_budget_is_a_guard(tmp_path, capsys, monkeypatch):
    arguments = ("--scale", "math", "--results", tmp_path, "--budget-gpu-hours")
    assert plan(capsys, monkeypatch, *arguments, 1_000_000)[0] == 0
    status, text = plan(capsys, monkeypatch, *arguments, 1000)
    assert status == 1 and "above --budget-gpu-hours 1000" in text


def test_a_stated_mfu_takes_the_place_of_the_measured(tmp_path, capsys, monkeypatch):
    status, text = plan(capsys, monkeypatch, "--scale", "math", "--results", tmp_path, "--mfu", "0.2", "--json")
    planned = json.loads(text)
    assert status == 0 and set(planned["mfu"].values()) == {0.2}
    (pretrain,) = (j for j in planned["points"]["d512-E8-k2-320M-A170M"]["jobs"] if j["stage"] == "pretrain")
    assert pretrain["gpu_hours"] == pytest.approx(pretrain["flops"] / (989e12 * 0.2) / 3600)


@pytest.mark.parametrize(("width", "mfu"), [(32, 0.41), (700, 0.41), (740, 0.46), (4096, 0.55)])
def test_a_width_that_was_not_measured_is_taken_for_the_nearest(width, mfu):
    assert measured_mfu(width) == mfu


def test_an_impossible_mfu_is_refused(capsys, monkeypatch):
    assert plan(capsys, monkeypatch, "--scale", "math", "--mfu", "40")[0] == 2
