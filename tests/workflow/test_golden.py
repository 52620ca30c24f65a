"""Drift: results of the smoke scale against the golden run (tests/golden.py)."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.dag.dag import Dag
from tests.golden import GOLDEN, golden_of, processor, versions

# Between processors the last bits differ: PyTorch, oneDNN and MKL choose other kernels. Measured on 2026-11-24: the
# losses of this scale with AVX2 instead of AVX-512 kernels on one machine differ by at most 1.1e-8 of their value; two
# runs on one machine not at all. The tolerance leaves room for other makers' processors.
TOLERANCE = 1e-6
# Text and tables of whole numbers, whose bytes are the same on every processor.
EXACT_EVERYWHERE = ("corpus", "tokenizer", "tokenize")
REWRITE = "if results were meant to change, raise the stage's version (pipeline/dag), then `python -m tests.golden`"


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN.read_text())
    return found


def drifted(golden: dict[str, Any], made: dict[str, Any], exact: bool) -> list[str]:
    """The jobs that came out otherwise than the golden run, with what differs."""
    found = []
    for label, job in made["jobs"].items():
        then = golden["jobs"][label]
        if exact or job["stage"] in EXACT_EVERYWHERE:
            found += [f"{label}: {name}" for name, digest in job["files"].items() if then["files"].get(name) != digest]
        for name, value in job["losses"].items():
            tolerance = 0.0 if exact else TOLERANCE
            if not math.isclose(value, then["losses"][name], rel_tol=tolerance, abs_tol=tolerance):
                found.append(f"{label}: {name} {then['losses'][name]} -> {value}")
    return found


def test_results_are_those_of_the_golden_run(smoke: Path, dag: Dag, golden: dict[str, Any]) -> None:
    """Byte for byte on the kind of processor that made it, losses within the tolerance on others."""
    assert golden["versions"] == versions(), f"stage versions changed: rewrite the golden run: {REWRITE}"
    made = golden_of(smoke / "results", dag)
    now, then = ({label: job["fingerprint"] for label, job in run["jobs"].items()} for run in (made, golden))
    assert now == then, f"the smoke scale or an engine's version changed: {REWRITE}"
    drift = drifted(golden, made, exact=processor() == golden["processor"])
    assert not drift, f"results changed although no stage's version did ({REWRITE}):\n" + "\n".join(drift)


def test_drift_is_noticed(golden: dict[str, Any]) -> None:
    """A changed byte where processors agree, a changed loss where they nearly do."""
    made = json.loads(json.dumps(golden))
    assert drifted(golden, made, exact=True) == drifted(golden, made, exact=False) == []
    tokens = next(label for label, job in made["jobs"].items() if job["stage"] == "tokenize")
    model = next(label for label, job in made["jobs"].items() if job["stage"] == "pretrain")
    made["jobs"][tokens]["files"]["train.bin"] = "0" * 64
    made["jobs"][model]["losses"]["train_loss"] += 0.01
    drift = sorted(drifted(golden, made, exact=False))
    assert drift[0].startswith(f"{model}: train_loss ") and drift[1:] == [f"{tokens}: train.bin"]
    made = json.loads(json.dumps(golden))
    made["jobs"][model]["files"]["metrics.parquet"] = "0" * 64
    assert drifted(golden, made, exact=True) == [f"{model}: metrics.parquet"]
