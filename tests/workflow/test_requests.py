"""What Snakemake asks machines and schedulers for, in dry runs."""

import re
import shutil
import subprocess

import pytest

from tests.helpers.repository import ROOT, SNAKEMAKE


def test_snakemake_plans_the_papers_grid():
    """What that costs is measured by benchmarks/plan.py."""
    command = [SNAKEMAKE, "-n", "--config", "scale=math"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"^pretrain_job +65$", done.stdout, re.M)


@pytest.mark.parametrize("profile", ["slurm", "pbs"])
def test_the_profile_of_one_machine_does_not_limit_a_clusters_jobs(profile: str) -> None:
    """Snakemake reads profiles/default beside a cluster's profile and would cut 8 GPUs down to its one."""
    command = [
        SNAKEMAKE,
        "--dry-run",
        "--printshellcmds",
        "--nocolor",
        "--profile",
        f"profiles/{profile}",
        "--config",
        "scale=math",
    ]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    point = said.split("wildcards: scale=math, point=d2048-E128-k16-52.2B-A7.1B\n    priority: 30\n")[1].split("\n\n")[
        0
    ]
    for size in ("nodes=16", "gpus=8", "gres=gpu:8", "ranks=8", "pp=4", "ep=8"):
        assert f" {size}," in point or point.splitlines()[0].endswith(f" {size}"), point
    assert int(point.split("mem_mb=")[1].split(",")[0]) > 100_000


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_one_machines_jobs_stay_as_they_were() -> None:
    command = [SNAKEMAKE, "--dry-run", "--printshellcmds", "--nocolor", "--cores", "2", "--config", "scale=smoke"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert "nodes=1, gpus=0" in said and "ranks=1" in said and "threads: 2" not in said
