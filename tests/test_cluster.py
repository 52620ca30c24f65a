"""Jobs through batch schedulers: a real Slurm where there is one, and a stand-in for PBS."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.artifact import read_record
from pipeline.dag import Dag
from tests.repository import ROOT, copy_repository, launch, snakemake

CHEAP = ("tokenizer", "tokenize")  # and the corpora they need: no engine
SMOKE_POINT = "d32-E4-k2-50K-A37K"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    copy_repository(folder)
    return folder


def wait_for(what: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


# ----------------------------------------------------------------------------------------------------------- PBS


@pytest.fixture
def pbs(tmp_path: Path) -> dict[str, str]:
    """The environment in which qsub, qstat and qdel are the stand-ins of tests/pbs."""
    (tmp_path / "pbs").mkdir()
    path = f"{ROOT / 'tests' / 'pbs'}:{os.environ['PATH']}"
    return {"PATH": path, "FAKE_PBS": str(tmp_path / "pbs"), "PBS_STATUS_WAIT": "0.1"}


def requests(pbs: dict[str, str]) -> dict[str, str]:
    """What each PBS job asked for: its number -> qsub's arguments."""
    return {p.stem: " ".join(p.read_text().split()) for p in Path(pbs["FAKE_PBS"]).glob("*.request")}


def test_stages_run_as_pbs_jobs_and_ask_for_what_they_need(repository: Path, pbs: dict[str, str]) -> None:
    done = snakemake(repository, "--profile", "profiles/pbs", *CHEAP, env=pbs)
    assert done.returncode == 0, done.stdout
    dag = Dag.load("smoke", repository / "config" / "grid.yaml")
    for stage in ("corpus", *CHEAP):
        for job in dag.of(stage):
            assert read_record(repository / "results" / job.folder).fingerprint == dag.fingerprint(job)
    asked = requests(pbs)
    assert len(asked) == sum(len(dag.of(stage)) for stage in ("corpus", *CHEAP))
    for request in asked.values():
        assert re.search(r"-l select=1:ncpus=[12]:mpiprocs=1:mem=2000mb -l walltime=\d\d:00:00 -r y", request), request


def test_a_failed_pbs_job_is_tried_again_and_then_reported(repository: Path, pbs: dict[str, str]) -> None:
    (repository / "pipeline" / "stages" / "corpus.py").write_text("raise SystemExit('broken')\n")
    done = snakemake(repository, "--profile", "profiles/pbs", "--retries", "1", "tokenizer", env=pbs)
    assert done.returncode != 0 and "broken" in done.stdout
    assert len(requests(pbs)) == 2 * 2


def test_interrupting_snakemake_deletes_its_pbs_jobs(repository: Path, pbs: dict[str, str]) -> None:
    slow = "import time\nprint('begun', flush=True)\ntime.sleep(600)\n"
    (repository / "pipeline" / "stages" / "corpus.py").write_text(slow)
    process = launch(repository, "--profile", "profiles/pbs", "tokenizer", env=pbs)
    logs = repository / "logs" / "smoke" / "data"
    wait_for(lambda: sum("begun" in log.read_text() for log in logs.rglob("corpus.log")) == 2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    folder = Path(pbs["FAKE_PBS"])
    wait_for(lambda: all((folder / f"{job}.state").read_text() == "F\n" for job in requests(pbs)))
    assert sorted((folder / "deleted").read_text().split()) == sorted(requests(pbs))


@pytest.mark.parametrize(
    ("state", "ended", "answer"),
    [
        ("Q", None, "running"),
        ("R", None, "running"),
        ("F", "0", "success"),
        ("F", "1", "failed"),
        ("F", None, "failed"),
    ],
)
def test_a_pbs_jobs_status_is_what_its_own_file_or_pbs_says(
    state: str, ended: str | None, answer: str, pbs: dict[str, str], tmp_path: Path
) -> None:
    (Path(pbs["FAKE_PBS"]) / "7.fake.state").write_text(state)
    (tmp_path / "logs" / "pbs").mkdir(parents=True)
    if ended is not None:
        (tmp_path / "logs" / "pbs" / "7.fake.status").write_text(ended)
    command = [ROOT / "profiles" / "pbs" / "status", "7.fake"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | pbs, capture_output=True, text=True)
    assert done.stdout == f"{answer}\n"


def test_a_pbs_job_over_several_nodes_asks_for_one_process_a_node(pbs: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text("exit 0\n")
    values = ["--name", "pretrain_job", "--nodes", "4", "--cores", "16", "--gpus", "8", "--mem-mb", "64000", "--minutes", "1445", "--notice-s", "300"]
    command = [ROOT / "profiles" / "pbs" / "submit", *values, "--extra", "-q gpu -P mygroup", "job.sh"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | pbs, capture_output=True, text=True, check=True)
    (request,) = requests(pbs).values()
    assert "-l select=4:ncpus=16:mpiprocs=1:mem=64000mb:ngpus=8 -l walltime=24:05:00 -l place=scatter" in request
    assert request.endswith("-q gpu -P mygroup")
    ended = tmp_path / "logs" / "pbs" / f"{done.stdout.strip()}.status"
    wait_for(ended.exists)
    assert ended.read_text() == "0\n"


def test_a_pbs_job_is_given_notice_before_its_time_is_up(pbs: dict[str, str], tmp_path: Path) -> None:
    program = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(print('saved'))); time.sleep(60)"
    (tmp_path / "job.sh").write_text(f"{sys.executable} program.py\n")
    (tmp_path / "program.py").write_text(program)
    values = ["--name", "corpus_job", "--nodes", "1", "--cores", "1", "--gpus", "0", "--mem-mb", "100", "--minutes", "1", "--notice-s", "58"]
    command = [ROOT / "profiles" / "pbs" / "submit", *values, "--extra", "", "job.sh"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | pbs, capture_output=True, text=True, check=True)
    job = done.stdout.strip()
    wait_for((tmp_path / "logs" / "pbs" / f"{job}.status").exists, 20)
    assert "saved" in (tmp_path / "logs" / "pbs" / f"{job}.out").read_text()
