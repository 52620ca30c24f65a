"""What the tests of adopted checkpoints share: a scale of one point that adopts, and its artifact."""

import shutil
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts.record import Record
from pipeline.dag.dag import Dag
from pipeline.runner import execute
from pipeline.stages import adopt
from tests.helpers.checkpoints import CPU, Lab

NAME = "d32-E4-k2-50K-A37K"
MODEL = {
    "layers": 2,
    "vocab_size": 256,
    "rope_theta": 1.0e6,
    "sequence_length": 128,
}  # of the tiny checkpoint, as transformers has them


def grid_of(lab: Lab, folder: Path, origin: dict[str, Any], **point: Any) -> Path:
    """The lab's grid file with one point that adopts."""
    grid = yaml.safe_load(lab.config.read_text())
    line = {"hidden": 32, "experts": 4, "topk": 2} | point
    smoke = grid["scales"]["smoke"]
    smoke |= {"points": [line], "adopt": origin, "model": MODEL}
    folder.mkdir(exist_ok=True)
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid))
    shutil.copyfile(lab.config.with_name("sources.yaml"), folder / "sources.yaml")
    return folder / "grid.yaml"


def adopted(lab: Lab, folder: Path, origin: dict[str, Any], **point: Any) -> tuple[Record, Path]:
    """The record and the folder of the artifact."""
    dag = Dag.load("smoke", grid_of(lab, folder, origin, **point))
    (job,) = dag.of("adopt")
    return execute(dag, job, adopt.run, folder / "results", CPU), folder / "results" / job.folder
