"""The golden run: what scale `smoke` gives on a CPU, kept in golden.json and compared in tests/workflow/test_golden.py.

    ./run python -m tests.golden results          rewrite it from a finished run of the scale

A change of code that changes results has to raise the version of its stage in pipeline/dag/stages.py, and then to
rewrite this file. A change that should not change results must leave it alone.
"""

import json
import sys
from pathlib import Path
from typing import Any

from pipeline.artifacts import store
from pipeline.dag.dag import Dag
from pipeline.dag.stages import STAGES

GOLDEN = Path(__file__).with_name("golden.json")
PROVENANCE = ("records.json", "report.html")  # hold times and the commit
# Metrics that move with rounding alone, and so may be compared between processors; all others of these stages count
# right answers, of which rounding can tip one over.
LOSSES = {
    "pretrain": ("train_loss", "validation_loss", "load_balance"),
    "taskloss": ("nll", "nll_item", "bits_token", "bits_byte", "stored_bits"),
}


def versions() -> dict[str, int]:
    """The version of each stage."""
    return {name: stage.version for name, stage in STAGES.items()}


def processor() -> str:
    """What decides the last bits of a float on a CPU: the processor's model and its vector instructions."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    vectors = sorted(flag for flag in fields.get("flags", "").split() if flag.startswith(("avx", "amx", "fma")))
    return " ".join([*(fields.get(key, "?") for key in ("model name", "cpu family", "model")), *vectors])


def losses(stage: str, metrics: dict[str, Any]) -> dict[str, float]:
    """The losses among a record's metrics, by name."""
    names = LOSSES.get(stage, ())
    found = {name: metrics[name] for name in names if name in metrics}
    rows = metrics.get("results", []) if stage == "taskloss" else []
    return found | {f"{row['task']} {row['metric']}": row["value"] for row in rows if row["metric"] in names}


def golden_of(results: Path, dag: Dag) -> dict[str, Any]:
    """The run below `results`: by job, what identifies it and what it is."""
    jobs = {}
    for job in dag.jobs:
        record = store.read_record(results / job.folder)
        jobs[job.label] = {
            "stage": job.stage,
            "fingerprint": record.fingerprint,
            "files": {entry.path: entry.sha256 for entry in record.outputs if entry.path not in PROVENANCE},
            "losses": losses(job.stage, record.metrics),
        }
    return {"processor": processor(), "versions": versions(), "jobs": jobs}


if __name__ == "__main__":
    made = golden_of(Path(sys.argv[1]), Dag.load("smoke"))
    GOLDEN.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
