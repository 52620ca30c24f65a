"""What a stage does under a batch scheduler: notice, going back in the queue, ranks on several nodes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import PipelineError, Stopped
from pipeline.runtime import scheduler
from pipeline.runtime.execution import Execution
from pipeline.runtime.torchrun import STOP, launcher, torchrun
from tests.helpers.repository import ROOT

TWO_NODES = Execution(device="cpu", nodes=2, ranks=1)


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("SLURM_JOB_ID", "PBS_JOBID"):
        monkeypatch.delenv(name, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm job of which scontrol says what the file `job` says; what else scontrol was told is in `told`."""
    scontrol = f'#!/bin/sh\ncd {tmp_path}\nif [ "$2" = show ]; then cat job; else echo "$@" >> told; fi\n'
    (tmp_path / "scontrol").write_text(scontrol)
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (tmp_path / "job").write_text("JobId=7 JobName=x JobState=RUNNING Reason=None Requeue=1 Restarts=0 Command=/a b\n")
    return tmp_path


def test_a_stage_given_notice_puts_its_slurm_job_back_in_the_queue(slurm: Path) -> None:
    with pytest.raises(SystemExit) as end, scheduler.notice():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert end.value.code == scheduler.TERMINATED
    assert (slurm / "told").read_text() == "requeue 7\n"


def test_so_does_a_stage_that_saved_first(slurm: Path) -> None:
    with pytest.raises(Stopped), scheduler.notice():
        raise Stopped("saved")
    assert (slurm / "told").read_text() == "requeue 7\n"


def test_a_cancelled_slurm_job_does_not_come_back(slurm: Path) -> None:
    (slurm / "job").write_text("JobId=7 JobState=COMPLETING Restarts=0\n")
    with pytest.raises(Stopped), scheduler.notice():
        raise Stopped("saved")
    assert not (slurm / "told").exists()


def test_a_stage_that_comes_back_again_and_again_without_saving_is_given_up(
    slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (slurm / "job").write_text(f"JobId=7 JobState=RUNNING Restarts={scheduler.RESTARTS}\n")
    with pytest.raises(SystemExit), scheduler.notice():
        sys.exit(scheduler.TERMINATED)
    assert not (slurm / "told").exists() and "give it more time" in capsys.readouterr().out
    assert scheduler.queue_again(), "one that has saved goes on"


def test_a_stage_that_fails_does_not_come_back(slurm: Path) -> None:
    with pytest.raises(PipelineError), scheduler.notice():
        raise PipelineError("wrong")
    assert not (slurm / "told").exists()


def test_notice_to_snakemake_in_a_cluster_job_reaches_its_stages_and_ends_nothing_else(tmp_path: Path) -> None:
    """As Slurm gives it: to the first process only. The shell between them ignores it, as the rules' shells do."""
    stage = (
        "import signal, sys, time; from pathlib import Path\n"
        "def stop(*_): Path('stopped').touch(); sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop); Path('begun').touch(); time.sleep(60)"
    )
    (tmp_path / "stage.py").write_text(stage)
    parent = (
        "import signal, subprocess; from pipeline.runtime.scheduler import forward_notice\n"
        "forward_notice(); signal.signal(signal.SIGTERM, lambda *_: None)\n"
        f"subprocess.run(['bash', '-c', \"trap '' TERM; {sys.executable} stage.py pipeline.stages.x; echo after\"])\n"
        "print('parent went on')"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", parent], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    while not (tmp_path / "begun").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert said.split("\n") == ["after", "parent went on", ""] and (tmp_path / "stopped").exists()


def test_several_nodes_are_refused_outside_of_a_schedulers_job() -> None:
    with pytest.raises(PipelineError, match="--nodes 2: several nodes are used in a Slurm or PBS job only"):
        launcher(TWO_NODES)


def test_in_a_slurm_job_one_torchrun_is_started_on_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NTASKS", "1")  # of the step that the stage runs in
    command = launcher(TWO_NODES)
    assert command[0] == "env" and "--unset=SLURM_NTASKS" in command and "--unset=SLURM_JOB_ID" not in command
    assert {"srun", "--overlap", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"} <= set(command)


@pytest.fixture
def pbs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PBS job on two nodes."""
    monkeypatch.setenv("PATH", f"{ROOT / 'tests' / 'helpers' / 'pbs'}:{os.environ['PATH']}")
    monkeypatch.setenv("PBS_JOBID", "7.fake")
    monkeypatch.setenv("PLANTED_TOKEN", "secret")
    monkeypatch.chdir(ROOT)


def test_ranks_on_two_pbs_nodes_meet_and_get_the_engines_settings_and_no_secret(pbs: None, tmp_path: Path) -> None:
    (tmp_path / "plan").write_text("go")
    torchrun("tests.helpers.ranks", tmp_path / "plan", TWO_NODES)
    assert {(tmp_path / f"rank-{i}").read_text() for i in range(2)} == {f"2 {os.environ['OMP_NUM_THREADS']} None"}


def test_failed_ranks_are_an_error_though_pbsdsh_does_not_say(pbs: None, tmp_path: Path) -> None:
    (tmp_path / "plan").write_text("fail")
    with pytest.raises(PipelineError, match="training on 2 ranks ended with status 1"):
        torchrun("tests.helpers.ranks", tmp_path / "plan", TWO_NODES)


@pytest.mark.parametrize("execution", [TWO_NODES, Execution(device="cpu", ranks=2)], ids=["two nodes", "one node"])
def test_at_sigterm_all_ranks_are_asked_to_stop(execution: Execution, pbs: None, tmp_path: Path) -> None:
    (tmp_path / "plan").write_text("wait")

    def terminate() -> None:
        while not (tmp_path / "rank-1").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    with pytest.raises(Stopped):
        torchrun("tests.helpers.ranks", tmp_path / "plan", execution)
    assert (tmp_path / STOP).exists()
