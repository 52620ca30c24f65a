"""Fingerprints, publication, restoration, checks and the lock."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from pipeline.artifacts import store
from pipeline.artifacts.record import Record, canonical, fingerprint, manifest
from pipeline.errors import PipelineError


def record(folder: Path, fingerprint: str = "f" * 16) -> Record:
    return Record(
        stage="corpus",
        stage_version=1,
        scale="smoke",
        point=None,
        variant=None,
        source="facts",
        fingerprint=fingerprint,
        settings={},
        inputs=[],
        outputs=manifest(folder),
        metrics={},
        versions={},
        commit=None,
        hardware={},
        execution={},
        started="2026-01-01T00:00:00+00:00",
        wall_s=0,
        cpu_s=0,
        peak_rss_mb=0,
    )


def make(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def publish(tmp_path: Path, files: dict[str, str], fingerprint: str = "f" * 16) -> Path:
    made, folder = make(tmp_path / "made", files), tmp_path / "published"
    store.publish(made, folder, record(made, fingerprint))
    return folder


def test_fingerprint_does_not_depend_on_key_order_and_does_on_every_value():
    one = fingerprint({"a": 1, "b": [1.5, None, True, "x"]})
    assert one == fingerprint({"b": [1.5, None, True, "x"], "a": 1})
    assert one != fingerprint({"a": 1, "b": [1.5, None, True, "y"]})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.0})  # 1 and 1.0 may behave differently


@pytest.mark.parametrize("value", [Path("x"), {1, 2}, float("nan"), {1: 2}, (1, 2), b"x"])
def test_values_without_a_canonical_form_are_refused(value):
    with pytest.raises(TypeError, match="settings.key"):
        canonical({"key": value})


def test_publish_replaces_what_an_earlier_record_listed_and_nothing_else(tmp_path):
    folder = publish(tmp_path, {"a.txt": "1", "sub/b.txt": "2"})
    make(folder, {"variant/record.json": "another artifact", "notes.txt": "a user's"})
    publish(tmp_path, {"c.txt": "3"})
    left = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert left == {"c.txt", "record.json", ".record.json", "variant/record.json", "notes.txt"}
    assert [entry.path for entry in store.read_record(folder).outputs] == ["c.txt"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_file_is_named_with_the_way_out(tmp_path, damage):
    folder = publish(tmp_path, {"data.bin": "0123456789"})
    path = folder / "data.bin"
    if damage == "flip":
        path.write_text("0123456780")
    elif damage == "truncate":
        path.write_text("012")
    else:
        path.unlink()
    with pytest.raises(PipelineError, match=r"data.bin: .*; `python -m pipeline verify .*` sets it aside"):
        store.check_files(folder, store.read_record(folder))


def test_a_lost_record_is_restored_only_if_the_artifact_is_whole_and_wanted(tmp_path):
    folder = publish(tmp_path, {"data.bin": "0123456789"})
    (folder / "record.json").unlink()  # what Snakemake does to a job whose end it did not see
    assert store.restore(folder, "0" * 16, {}) is None
    assert store.restore(folder, "f" * 16, {"corpus": "other"}) is None
    assert store.restore(folder, "f" * 16, {}) is not None
    assert store.read_record(folder).fingerprint == "f" * 16
    (folder / "data.bin").write_text("012345678x")
    assert store.restore(folder, "f" * 16, {}) is None


def test_missing_record_says_what_makes_it(tmp_path):
    with pytest.raises(PipelineError, match=r"record.json: not there yet; `snakemake"):
        store.read_record(tmp_path)


def _hold(path: Path, seconds: float) -> None:
    with store.locked(path):
        (path.parent / "held").touch()
        time.sleep(seconds)
        (path.parent / "released").touch()


def test_a_second_process_waits_for_the_lock_and_a_dead_ones_lock_is_gone(tmp_path):
    lock = tmp_path / "lock"
    spawn = multiprocessing.get_context("spawn")
    holder = spawn.Process(target=_hold, args=(lock, 0.5))
    holder.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with store.locked(lock):
        assert (tmp_path / "released").exists()
    holder.join()
    (tmp_path / "held").unlink()
    killed = spawn.Process(target=_hold, args=(lock, 600))
    killed.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    os.kill(killed.pid, 9)
    killed.join()
    with store.locked(lock):
        pass
