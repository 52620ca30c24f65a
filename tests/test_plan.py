"""`python -m pipeline plan`: figures, what remains, refusals, calibration, and that it writes nothing."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import __main__ as command_line
from pipeline import artifact
from pipeline.artifact import Record
from pipeline.config import load_grid
from pipeline.dag import Dag, Job

CONFIG = Path(__file__).parents[1] / "config"


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
    artifact.write_atomic(results / job.record, record.model_copy(update=changes).model_dump_json())


def test_the_papers_grid_is_planned_in_65_rows(tmp_path, capsys, monkeypatch):
    status, said = plan(capsys, monkeypatch, "--scale", "math", "--results", tmp_path, "--json")
    planned = json.loads(said)
    assert status == 0 and len(planned["points"]) == 65
    largest = planned["points"]["d2048-E128-k16-52.2B-A7.1B"]
    (pretrain,) = (job for job in largest["jobs"] if job["stage"] == "pretrain")
    # docs/PAPER.md, grid: 43.1 GFLOPs a token, 125 B tokens; validation adds 0.7 %.
    assert pretrain["flops"] == pytest.approx(43.100e9 * 125.0e9, rel=0.01)
    assert pretrain["gpu_hours"] == pytest.approx(pretrain["flops"] / (989e12 * 0.4) / 3600)
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
    one, two = dag.of("pretrain")
    finished(dag, one, tmp_path, "cpu", 1e9)
    finished(dag, two, tmp_path, "cpu", 1e9, fingerprint="of other settings")
    arguments = ("--scale", "smoke", "--results", tmp_path, "--gpu", "cpu")
    planned = json.loads(plan(capsys, monkeypatch, *arguments, "--json")[1])
    left = {
        name: [job["remains"] for job in row["jobs"] if job["stage"] == "pretrain"]
        for name, row in planned["points"].items()
    }
    assert left == {one.point: [False], two.point: [True]}
    assert planned["remaining"]["jobs"] == len(dag.jobs) - 1


def test_records_calibrate_and_predicted_stands_beside_actual(tmp_path, capsys, monkeypatch):
    """The second job runs at half the first's speed, so it is predicted from the first in half its time."""
    dag = Dag.load("mini", CONFIG / "grid.yaml")
    first, second, third, *_ = dag.of("pretrain")
    finished(dag, first, tmp_path, "cpu", 2e9)
    finished(dag, second, tmp_path, "cpu", 1e9)
    arguments = ("--scale", "mini", "--results", tmp_path, "--gpu", "cpu")
    text = plan(capsys, monkeypatch, *arguments)[1]
    assert "pretrain: 1.5e+09 FLOP/s a process by 2 records" in text
    assert f"  {second.label}: predicted" in text and "(-50%)" in text and "(+100%)" in text
    planned = json.loads(plan(capsys, monkeypatch, *arguments, "--json")[1])
    (job,) = (job for job in planned["points"][third.point]["jobs"] if job["stage"] == "pretrain")
    assert job["gpu_hours"] == pytest.approx(job["flops"] / 1.5e9 / 3600)
    assert planned["remaining"]["gpu_hours"] is None, "no rate is known of the other stages on this device"


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
    assert "pretrain d2048-E16-k16-7.1B-A7.1B: layout 16x8 needs 118 GB on a GPU" in text
    assert "; would fit: 16x8 tp2" in text


def test_a_budget_is_a_guard(tmp_path, capsys, monkeypatch):
    arguments = ("--scale", "math", "--results", tmp_path, "--budget-gpu-hours")
    assert plan(capsys, monkeypatch, *arguments, 1_000_000)[0] == 0
    status, text = plan(capsys, monkeypatch, *arguments, 1000)
    assert status == 1 and "above --budget-gpu-hours 1000" in text


def test_an_impossible_mfu_is_refused(capsys, monkeypatch):
    assert plan(capsys, monkeypatch, "--scale", "math", "--mfu", "40")[0] == 2


def test_snakemake_plans_the_papers_grid():
    """What that costs is measured by benchmarks/plan.py."""
    command = [str(Path(sys.executable).with_name("snakemake")), "-n", "--config", "scale=math"]
    done = subprocess.run(command, cwd=CONFIG.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"^pretrain_job +65$", done.stdout, re.M)
