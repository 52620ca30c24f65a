"""The data stages of a scale with a source of one's own."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from pipeline.dag.dag import Dag
from pipeline.runner import execute
from pipeline.stages import corpus, tokenize, tokenizer
from tests.helpers.repository import ROOT
from tests.unit.test_config import grid_file

STAGES = {"corpus": corpus.run, "tokenizer": tokenizer.run, "tokenize": tokenize.run}
SHARED = Path(os.environ.get("MOE_SPARSITY_SHARED", ROOT.parent / "shared")) / "data"


def make(dag: Dag, results: Path, stages: tuple[str, ...] = tuple(STAGES)) -> Path:
    for job in dag.jobs:
        if job.stage in stages:
            execute(dag, job, STAGES[job.stage], results)
    return results / dag.name / "data"


def with_source(tmp_path: Path, tokenizer_entry: dict | None = None, **source: object) -> Dag:
    """Scale smoke with one local source `mine` (and another tokenizer)."""
    changes: dict = {"data__sources": {"mine": 1.0}, "benchmark": None, "decode": None, "taskloss": None}
    changes |= {"points": [{"hidden": 32, "experts": 4, "topk": 2}]}
    if tokenizer_entry:
        changes |= {"data__tokenizer": "other", "model__vocab_size": 99_584}
    path = grid_file(tmp_path, **changes)
    registry = yaml.safe_load((tmp_path / "sources.yaml").read_text())
    registry["datasets"]["mine"] = {"kind": "local", "licence": "CC0-1.0", **source}
    if tokenizer_entry:
        registry["tokenizers"]["other"] = {"kind": "file", "licence": "Apache-2.0", **tokenizer_entry}
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump(registry))
    return Dag.load("smoke", path)


def documents(folder: Path) -> list[str]:
    return [t for p in sorted(folder.glob("documents-*.parquet")) for t in pq.read_table(p)["text"].to_pylist()]


def same_tokens(one: Path, other: Path) -> None:
    for name in ("train.bin", "train.idx", "validation.bin", "validation.idx"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def write_lines(path: Path, texts: Iterable[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
