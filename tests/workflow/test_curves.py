"""What `tensorboard --logdir logs` shows after a run."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.dag.dag import Dag
from tests.helpers.curves import read_curves


def test_every_training_has_curves_beside_its_log(smoke: Path, dag: Dag) -> None:
    trainings = [*dag.of("pretrain"), *dag.of("grpo")]
    for job in trainings:
        curves = read_curves(smoke / job.log.with_suffix(""))
        name, table = {"pretrain": ("loss", "metrics"), "grpo": ("reward", "training")}[job.stage]
        rows = pd.read_parquet(smoke / "results" / job.folder / f"{table}.parquet").set_index("step")[name]
        points = dict(curves[f"training/{name}"])
        assert len(points) == len(curves[f"training/{name}"]) and max(points) == rows.index.max()
        assert points == pytest.approx({step: rows[step] for step in points}, rel=1e-6)
        assert job.stage == "pretrain" or points.keys() == set(rows.index), "GRPO's steps are few"
        measured = {"pretrain": "loss", "grpo": "accuracy"}[job.stage]
        validation = pd.read_parquet(smoke / "results" / job.folder / "validation.parquet").set_index("step")[measured]
        assert dict(curves[f"validation/{measured}"]) == pytest.approx(validation.to_dict(), rel=1e-6)
    files = {path.parent for path in smoke.rglob("*tfevents*")}
    assert files == {smoke / job.log.with_suffix("") for job in trainings}, "there, and in no artifact"
