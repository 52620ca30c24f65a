"""What jobs ask a scheduler for."""

import shutil
import subprocess

import pytest

from pipeline.dag import Dag
from pipeline.layouts import STAGES, Layout, Layouts
from pipeline.needs import needs
from tests.repository import ROOT, SNAKEMAKE


@pytest.fixture(scope="module")
def math() -> tuple[Dag, Layouts]:
    return Dag.load("math", ROOT / "config" / "grid.yaml"), Layouts.load("math", ROOT / "config" / "layouts.yaml")


def test_every_job_of_every_point_can_be_asked_for(math: tuple[Dag, Layouts]) -> None:
    dag, layouts = math
    for job in dag.jobs:
        layout = layouts.of(job.point, job.stage) if job.stage in STAGES else Layout()
        asked = needs(job.stage, dag.points[job.point] if job.point else None, layout, True)
        assert min(asked.nodes, asked.cores, asked.mem_mb, asked.runtime) > 0


def test_larger_models_ask_for_more(math: tuple[Dag, Layouts]) -> None:
    dag, layouts = math
    small, large = "d512-E8-k2-320M-A170M", "d2048-E128-k16-52.2B-A7.1B"
    for stage in ("pretrain", "convert", "grpo", "benchmark", "decode", "taskloss"):
        less, more = (needs(stage, dag.points[p], layouts.of(p, stage), True) for p in (small, large))
        assert more.mem_mb > less.mem_mb and more.runtime >= less.runtime and more.gpus >= less.gpus
    assert needs("pretrain", dag.points[large], layouts.of(large, "pretrain"), True).nodes == 16


def test_without_gpus_none_are_asked_for(math: tuple[Dag, Layouts]) -> None:
    dag, layouts = math
    for name, point in dag.points.items():
        asked = needs("grpo", point, layouts.of(name, "grpo"), False)
        assert asked.gpus == 0 and asked.gres == ""


@pytest.mark.parametrize("profile", ["slurm", "pbs"])
def test_the_profile_of_one_machine_does_not_limit_a_clusters_jobs(profile: str) -> None:
    """Snakemake reads profiles/default beside a cluster's profile and would cut 8 GPUs down to its one."""
    command = [SNAKEMAKE, "--dry-run", "--nocolor", "--profile", f"profiles/{profile}", "--config", "scale=math"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    point = said.split("wildcards: point=d2048-E128-k16-52.2B-A7.1B\n    priority: 30\n")[1].split("\n\n")[0]
    for size in ("nodes=16", "gpus=8", "gres=gpu:8", "ranks=8", "pp=4", "ep=8"):
        assert f" {size}," in point or point.splitlines()[0].endswith(f" {size}"), point
    assert int(point.split("mem_mb=")[1].split(",")[0]) > 100_000


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_one_machines_jobs_stay_as_they_were() -> None:
    command = [SNAKEMAKE, "--dry-run", "--nocolor", "--cores", "2", "--config", "scale=smoke"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert "nodes=1, gpus=0" in said and "ranks=1" in said and "threads: 2" not in said
