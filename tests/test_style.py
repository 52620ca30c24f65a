"""Formatting, lint and types of the code and of the workflow, as the tools themselves see them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = ("pipeline", "tests", "benchmarks")
WORKFLOW = ["Snakefile", *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("workflow/rules/*.smk"))]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "format", "--check", "--quiet", *PYTHON],
        ["ruff", "check", "--quiet", *PYTHON],
        ["mypy", "--no-error-summary"],
        ["snakefmt", "--check", *WORKFLOW],
        ["snakemake", "--lint"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_clean(command):
    bin_folder = Path(sys.executable).parent
    done = subprocess.run([bin_folder / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
