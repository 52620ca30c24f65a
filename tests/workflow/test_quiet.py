"""Commands end without a traceback when their reader goes away, and at Ctrl-C with one line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.repository import ROOT, default_signals

VERBS = {
    "plan": ["pipeline", "plan", "--scale", "smoke"],
    "status": ["pipeline", "status", "--scale", "smoke"],
    "why": ["pipeline", "why", "--scale", "smoke"],
    "accept": ["pipeline", "accept", "tokenize", "--reason", "x", "--scale", "smoke"],
    "verify": ["pipeline", "verify", "--scale", "smoke"],
    "bundle": ["pipeline", "bundle", "--out", "b.tar", "--stages", "table", "--scale", "smoke"],
    "a stage": ["pipeline.stages.corpus", "--scale", "smoke", "--source", "facts-smoke"],
}
OTHERS = {
    "--help": ["pipeline", "--help"],
    "config": ["pipeline", "config"],
    "hub_layout": ["pipeline.tasks.offline_hub.layout", "--help"],
    "a stage's --help": ["pipeline.stages.table", "--help"],
}


def start(folder: Path, arguments: list[str], stdout: int) -> subprocess.Popen[str]:
    """Start a command in a folder that holds the configuration and no results."""
    command = [sys.executable, "-m", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=env, text=True, stdout=stdout, stderr=pipe, preexec_fn=default_signals
    )


def closed_pipe() -> int:
    """The writing end of a pipe that nobody reads."""
    readable, writable = os.pipe()
    os.close(readable)
    return writable


@pytest.mark.parametrize("name", VERBS | OTHERS)
def test_a_command_ends_quietly_when_its_reader_is_gone(name: str, tmp_path: Path) -> None:
    (tmp_path / "config").symlink_to(ROOT / "config")
    (tmp_path / "workflow").symlink_to(ROOT / "workflow")
    process = start(tmp_path, (VERBS | OTHERS)[name], closed_pipe())
    _, said = process.communicate()
    if name in VERBS or name == "config":
        assert process.returncode == 128 + signal.SIGPIPE or said.startswith("error: "), said
    assert "Traceback" not in said and "BrokenPipe" not in said and said.count("\n") <= 1


def test_nor_does_one_whose_errors_go_there_too(tmp_path: Path) -> None:
    (tmp_path / "config").symlink_to(ROOT / "config")
    command = f"{sys.executable} -m pipeline why nonsense 2>&1 | true; exit ${{PIPESTATUS[0]}}"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode in (1, 128 + signal.SIGPIPE) and done.stderr == ""


@pytest.mark.parametrize("name", [*VERBS, "config"])
def test_a_command_ends_with_one_line_at_ctrl_c(name: str, tmp_path: Path) -> None:
    """Interrupted as it reads its configuration, which comes from a pipe here."""
    (tmp_path / "config").mkdir()
    os.mkfifo(tmp_path / "config" / "grid.yaml")
    process = start(tmp_path, (VERBS | OTHERS)[name], subprocess.DEVNULL)
    with (tmp_path / "config" / "grid.yaml").open("w"):  # returns when the command reads
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (128 + signal.SIGINT, "interrupted\n")
