"""Curves for TensorBoard, read back as TensorBoard reads them."""

import itertools
import threading
import time
from pathlib import Path

import pytest

from pipeline.runtime import curves as module
from pipeline.runtime.curves import Curves
from tests.helpers.curves import read_curves


def test_points_at_intervals_that_grow_and_the_last_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is 0.03 seconds after the one before."""
    monkeypatch.setattr(module.time, "monotonic", itertools.count(0, 0.03).__next__)
    monkeypatch.setattr(module, "SHARE", 0.1)
    with pytest.raises(ValueError, match="diverged"), Curves(tmp_path / "a/b", first=1) as curves:
        for step in range(1, 201):
            curves.step(step, "training", {"loss": step / 2, "kl": None})
            if step == 6:
                curves.write(step, "validation", {"loss": 9.0})
        raise ValueError("diverged")
    points = read_curves(tmp_path / "a/b")
    assert points["validation/loss"] == [(6, 9.0)] and set(points) == {"validation/loss", "training/loss"}
    steps = [step for step, _ in points["training/loss"]]
    assert steps[:4] == [1, 8, 15, 22] and steps[-1] == 200
    assert steps[-2] - steps[-3] > 10 and len(steps) < 50, "a tenth of the time so far"
    assert all(value == step / 2 for step, value in points["training/loss"])


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    """The first launch is killed after step 8, with what it wrote on disk; its last save is of step 5."""
    killed = Curves(tmp_path, first=1)
    for step in range(1, 9):
        killed.write(step, "training", {"loss": 1.0})
    killed.flush()
    assert [step for step, _ in read_curves(tmp_path)["training/loss"]] == [*range(1, 9)], "on disk while it runs"
    (written,) = tmp_path.iterdir()  # by a process whose number sorts last, in the same second
    written.rename(written.with_name(f"events.out.tfevents.{int(time.time())}.~.9.9"))
    with Curves(tmp_path, first=6) as curves:
        curves.write(7, "training", {"loss": 2.0})
        curves.write(9, "training", {"loss": 2.0})
    assert read_curves(tmp_path)["training/loss"] == [*((step, 1.0) for step in range(1, 6)), (7, 2.0), (9, 2.0)]
    with Curves(tmp_path, first=1) as curves:  # of other settings
        curves.write(2, "training", {"loss": 3.0})
    assert read_curves(tmp_path)["training/loss"] == [(2, 3.0)]


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").write_text("a file")
    with Curves(tmp_path / "logs/pretrain", first=1) as curves:
        curves.step(1, "training", {"loss": 1.0})
        curves.flush()
    assert capsys.readouterr().out.startswith(f"warning: {tmp_path}/logs/pretrain: no curves for TensorBoard")


def test_a_disk_that_fills_meanwhile_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda *_: None)

    def full(_: bytes) -> None:
        raise OSError(28, "No space left on device")

    with Curves(tmp_path, first=1) as curves:
        monkeypatch.setattr(curves.writer.file_writer.event_writer._async_writer._writer, "write", full)
        for step in range(100):
            curves.write(step, "training", {"loss": 1.0})
            curves.flush()
        assert curves.writer is None
    assert capsys.readouterr().out.count("No space left on device") == 1


def test_a_rank_that_is_not_the_first_writes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Curves(None, first=1) as curves:
        curves.step(1, "training", {"loss": 1.0})
    assert not list(tmp_path.iterdir())
