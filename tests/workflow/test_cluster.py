"""Jobs through batch schedulers: a real Slurm where there is one, and a stand-in for PBS."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.artifacts.store import read_record
from pipeline.dag.dag import Dag, Job
from tests.helpers.repository import ROOT, copy_repository, launch, snakemake
from tests.helpers.slurm import Slurm, missing

PBS = ("--profile", "profiles/pbs", "--seconds-between-status-checks", "1")  # the profile as it is, but asked sooner
CHEAP = ("tokenizer", "tokenize")  # and the corpora they need: no engine


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
    """The environment in which qsub, qstat and qdel are the stand-ins of tests/helpers/pbs."""
    (tmp_path / "pbs").mkdir()
    path = f"{ROOT / 'tests/helpers/pbs'}:{os.environ['PATH']}"
    return {"PATH": path, "FAKE_PBS": str(tmp_path / "pbs"), "PBS_STATUS_WAIT": "0.1"}


def requests(pbs: dict[str, str]) -> dict[str, str]:
    """What each PBS job asked for: its number -> qsub's arguments."""
    return {p.stem: " ".join(p.read_text().split()) for p in Path(pbs["FAKE_PBS"]).glob("*.request")}


def test_stages_run_as_pbs_jobs_and_ask_for_what_they_need(repository: Path, pbs: dict[str, str]) -> None:
    """On nodes with clocks of their own (tests/helpers/clock)."""
    done = snakemake(repository, *PBS, *CHEAP, env=pbs | {"PYTHONPATH": f"{ROOT / 'tests/helpers/clock'}:{repository}"})
    assert done.returncode == 0, done.stdout
    dag = Dag.load("smoke", repository / "config" / "grid.yaml")
    for stage in ("corpus", *CHEAP):
        for job in dag.of(stage):
            assert read_record(repository / "results" / job.folder).fingerprint == dag.fingerprint(job)
    asked = requests(pbs)
    assert len(asked) == sum(len(dag.of(stage)) for stage in ("corpus", *CHEAP))
    for request in asked.values():
        assert re.search(
            r"-l select=1:ncpus=[12]:mpiprocs=1:mem=(2000|16000)mb -l walltime=\d\d:00:00 -r y", request
        ), request
    assert "Nothing to be done" in snakemake(repository, *PBS, *CHEAP, env=pbs).stdout


def test_a_failed_pbs_job_is_tried_again_and_then_reported(repository: Path, pbs: dict[str, str]) -> None:
    (repository / "pipeline" / "stages" / "corpus.py").write_text("raise SystemExit('broken')\n")
    done = snakemake(repository, *PBS, "--retries", "1", "tokenizer", env=pbs)
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


def test_what_qstat_said_long_ago_does_not_count_whatever_its_file_is_dated(
    pbs: dict[str, str], tmp_path: Path
) -> None:
    logs = tmp_path / "logs" / "pbs"
    logs.mkdir(parents=True)
    (logs / "queue").write_text("1000000000\n7.fake-server  job  user  00:00:00 R batch\n")
    os.utime(logs / "queue", (0, time.time() + 86400))
    command = [ROOT / "profiles" / "pbs" / "status", "7.fake"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | pbs, capture_output=True, text=True)
    assert done.stdout == "failed\n", "it is not known any more, and left no status"


def test_a_pbs_job_over_several_nodes_asks_for_one_process_a_node(pbs: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text("exit 0\n")
    values = [
        "--name",
        "pretrain_job",
        "--nodes",
        "4",
        "--cores",
        "16",
        "--gpus",
        "8",
        "--mem-mb",
        "64000",
        "--minutes",
        "1445",
        "--notice-s",
        "300",
    ]
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
    values = [
        "--name",
        "corpus_job",
        "--nodes",
        "1",
        "--cores",
        "1",
        "--gpus",
        "0",
        "--mem-mb",
        "100",
        "--minutes",
        "1",
        "--notice-s",
        "58",
    ]
    command = [ROOT / "profiles" / "pbs" / "submit", *values, "--extra", "", "job.sh"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | pbs, capture_output=True, text=True, check=True)
    job = done.stdout.strip()
    wait_for((tmp_path / "logs" / "pbs" / f"{job}.status").exists, 20)
    assert "saved" in (tmp_path / "logs" / "pbs" / f"{job}.out").read_text()


# --------------------------------------------------------------------------------------------------------- Slurm

# The profile as it is, asked for the state of jobs sooner, and without an accounting database.
SLURM = (
    "--profile",
    "profiles/slurm",
    "--slurm-status-command",
    "squeue",
    "--slurm-init-seconds-before-status-checks",
    "2",
)


@pytest.fixture
def slurm(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Slurm]:
    if lacking := missing():
        pytest.skip(f"a test Slurm needs {', '.join(lacking)} (Debian packages slurm-wlm and munge, run as root)")
    with Slurm(nodes=getattr(request, "param", 1)) as running:
        yield running


def pretrain_job(repository: Path) -> tuple[Dag, Job, Path]:
    """The first point's pre-training at scale smoke, and its log."""
    dag = Dag.load("smoke", repository / "config" / "grid.yaml")
    job = dag.of("pretrain")[0]
    return dag, job, repository / "logs" / "smoke" / str(job.point) / "pretrain.log"


def test_stages_run_as_slurm_jobs(repository: Path, slurm: Slurm) -> None:
    done = snakemake(repository, *SLURM, "tokenizer", env=slurm.environment)
    assert done.returncode == 0, done.stdout
    dag = Dag.load("smoke", repository / "config" / "grid.yaml")
    for stage in ("corpus", "tokenizer"):
        for job in dag.of(stage):
            assert read_record(repository / "results" / job.folder).fingerprint == dag.fingerprint(job)
    assert slurm.run("squeue", "--noheader", "--states=all", "--format=%T").split() == ["COMPLETED"] * 3


@pytest.mark.slow
def test_the_smoke_scale_through_slurm_gives_what_it_gives_locally(
    smoke: Path, dag: Dag, repository: Path, slurm: Slurm
) -> None:
    done = snakemake(repository, *SLURM, "--jobs", "2", env=slurm.environment)
    assert done.returncode == 0, done.stdout[-10000:]
    for job in dag.jobs:
        local, through_slurm = (
            {entry.path: entry.sha256 for entry in read_record(folder / "results" / job.folder).outputs}
            for folder in (smoke, repository)
        )
        assert local.keys() == through_slurm.keys()
        different = {path for path in local if local[path] != through_slurm[path]}
        assert different <= {"records.json", "report.html"}, job.label  # these two tell when and how it was run
    assert "Nothing to be done" in snakemake(repository).stdout


@pytest.mark.slow
@pytest.mark.parametrize("notice", ["its time is almost up", "another job takes its place"])
def test_a_training_job_that_slurm_ends_saves_and_goes_on_under_its_number(
    notice: str, repository: Path, slurm: Slurm
) -> None:
    grid = repository / "config" / "scales" / "mini.yaml"
    grid.write_text(grid.read_text().replace("pretrain: {steps: 20,", "pretrain: {steps: 4000,"))
    _, job, log = pretrain_job(repository)
    process = launch(repository, *SLURM, f"results/{job.record}", env=slurm.environment)
    wait_for(lambda: log.exists() and "\nstep " in log.read_text(), 300)
    (number,) = slurm.run("squeue", "--noheader", "--states=running", "--format=%i").split()
    if notice == "its time is almost up":  # what --signal=TERM@300 does 300 seconds before the end
        slurm.run("scancel", "--signal=TERM", number)
    else:
        slurm.run("sbatch", "--partition=urgent", "--exclusive", "--time=1", "--output=/dev/null", "--wrap=sleep 1")
    wait_for(lambda: slurm.run("squeue", "--noheader", f"--jobs={number}", "--format=%T").strip() == "PENDING")
    assert "and saved; the same command continues" in log.read_text()
    slurm.run("scontrol", "update", f"JobId={number}", "StartTime=now")  # Slurm would let it wait two minutes
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert "continuing after step" in log.read_text()
    jobs = slurm.run("squeue", "--noheader", "--states=all", "--partition=batch", "--format=%i %T").splitlines()
    assert f"{number} COMPLETED" in jobs and len(jobs) == len({line.split()[0] for line in jobs})
    assert said.count("has been submitted with SLURM jobid") == len(jobs), "no job was submitted twice"


@pytest.mark.slow
@pytest.mark.parametrize("slurm", [2], indirect=True)
def test_one_model_is_trained_on_two_slurm_nodes(repository: Path, slurm: Slurm) -> None:
    """A pipeline stage on each node; the nodes are two slurmd of this machine."""
    dag, job, log = pretrain_job(repository)
    sizes = ("--set-resources", "pretrain_job:nodes=2", "pretrain_job:pp=2")
    done = snakemake(repository, *SLURM, f"results/{job.record}", *sizes, env=slurm.environment)
    assert done.returncode == 0, done.stdout + (log.read_text() if log.exists() else "")
    record = read_record(repository / "results" / job.folder)
    assert (record.execution["nodes"], record.execution["ranks"], record.execution["pp"]) == (2, 1, 2)
    assert record.fingerprint == dag.fingerprint(job)
