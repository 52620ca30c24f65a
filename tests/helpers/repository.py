"""A copy of the repository in which Snakemake is run, and what tests ask of it."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from pipeline.artifacts import store
from pipeline.artifacts.record import RECORD, RECORD_COPY
from pipeline.dag.dag import STATE, Dag, Job
from pipeline.runner import HISTORY

ROOT = Path(__file__).parents[2]
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
PLANTED = {  # secrets as users have them in their environment; no file of a run may hold one
    "HF_TOKEN": "hf_planted4f1c9a77",
    "WANDB_API_KEY": "planted90b2e6d155aa",
    "AWS_SECRET_ACCESS_KEY": "planted/c3+77Qm1",
}


def copy_repository(to: Path) -> None:
    """What a run needs of the repository, without results."""
    for name in ("Snakefile", "config", "profiles", "workflow", "pipeline"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, to / name)


def default_signals() -> None:
    """In a child before its program begins (`preexec_fn`): no signal is ignored or blocked, as in a terminal.

    Both are inherited, and a shell lets its background jobs ignore SIGINT.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def launch(
    folder: Path, *arguments: str, env: dict[str, str] | None = None, scale: str = "smoke"
) -> subprocess.Popen[str]:
    """Start `snakemake --config scale=...` in a process group of its own."""
    command = [str(SNAKEMAKE), "--cores", "2", "--nocolor", *arguments, "--config", f"scale={scale}"]
    # The copy's own package, not the installed one, also for processes that start before Python sees the folder.
    environment = os.environ | PLANTED | {"PYTHONPATH": str(folder)} | (env or {})
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=pipe,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
        preexec_fn=default_signals,
    )


def snakemake(
    folder: Path, *arguments: str, env: dict[str, str] | None = None, scale: str = "smoke"
) -> subprocess.CompletedProcess[str]:
    """Run `snakemake --config scale=...` to its end; all it says is in stdout."""
    process = launch(folder, *arguments, env=env, scale=scale)
    said, _ = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, said, "")


def verb(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m pipeline ...`."""
    command = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the copy's own package."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def planned(folder: Path) -> set[str]:
    """Records (and the report page) that a dry run would make."""
    done = snakemake(folder, "--dry-run", "--printshellcmds")  # with what Snakemake says of each job
    assert done.returncode == 0, done.stdout
    lines = [line.removesuffix(" (update)") for line in done.stdout.splitlines()]
    outputs = {line.split("output: ")[1] for line in lines if "output: " in line}
    assert outputs or "Nothing to be done" in done.stdout
    return outputs


def contents(folder: Path, dag: Dag) -> dict[Job, str]:
    """The digest of every artifact's outputs and metrics, each file compared with its record."""
    found = {}
    for job in dag.jobs:
        record = store.read_record(folder / "results" / job.folder)
        store.check_files(folder / "results" / job.folder, record)
        found[job] = record.content
    return found


def runs(folder: Path, dag: Dag) -> dict[Job, int]:
    """How often each job was begun, by its history."""
    histories = {job: folder / "results" / STATE / job.folder / HISTORY for job in dag.jobs}
    return {job: path.read_text().count('"begun"') if path.exists() else 0 for job, path in histories.items()}


def remove(folder: Path, job: Job) -> None:
    """Take a job's artifact away as if it had never been made; artifacts in folders below it stay."""
    where = folder / "results" / job.folder
    record = store.read_record(where)
    for name in (RECORD, RECORD_COPY, *(entry.path for entry in record.outputs)):
        (where / name).unlink()
