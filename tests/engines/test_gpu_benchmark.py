"""benchmarks/gpu.py from end to end, on a CPU with models too small to say anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def run(*options: str, **environment: str) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu", *options]
    return subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | environment, capture_output=True, text=True, timeout=900, check=True
    ).stdout


@pytest.mark.slow
def test_every_line_of_the_benchmark_has_its_number(tmp_path: Path) -> None:
    said = run("--device", "cpu", "--tiny")
    row = next(line for line in said.splitlines() if line.startswith("| d32-E8"))
    tokens, share, megatrons, peers = (cell.strip() for cell in row.split("|")[3:7])
    assert float(tokens.replace(",", "")) > 0 and share.endswith("%")
    assert "(" in megatrons and "(" in peers
    apart = float(said.split("CPU: at most ")[1].split()[0])
    assert 0 < apart < 1e-5
    parity = float(said.split("of its conversion: ")[1].split()[0])
    assert 0 < parity < 1e-2


@pytest.mark.slow
def test_without_transformers_its_cells_say_so(tmp_path: Path) -> None:
    (tmp_path / "transformers.py").write_text("raise ModuleNotFoundError('no', name='transformers')\n")
    said = run("--device", "cpu", "--tiny", PYTHONPATH=f"{tmp_path}:{REPOSITORY}")
    row = next(line for line in said.splitlines() if line.startswith("| d32-E8"))
    assert row.split("|")[6].strip() == "no transformers"
    assert "Conversion not compared" in said and "at most" in said
