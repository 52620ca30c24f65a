"""Verification of published files: every flipped byte is found, set aside, and mended by the next run."""

from pathlib import Path

import pytest

from pipeline.artifacts import store
from pipeline.artifacts.record import RECORD, RECORD_COPY
from pipeline.commands.verify import examine, set_aside
from pipeline.dag.dag import Dag
from tests.helpers.repository import contents, runs, snakemake, verb
from tests.unit.test_artifact import publish


def flip(path: Path, at: int) -> bytes:
    """Change one byte; returns what the file held."""
    before = path.read_bytes()
    path.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
    return before


def test_one_flipped_byte_in_any_published_file_is_found(smoke: Path, dag: Dag) -> None:
    """Records and their copies too; at the first, a middle and the last byte."""
    folders = {smoke / "results" / job.folder for job in dag.jobs}
    published = 0
    for folder in folders:
        record = store.read_record(folder)
        assert examine(folder, folders - {folder}) == (record, [])
        for name in (RECORD, RECORD_COPY, *(entry.path for entry in record.outputs)):
            path = folder / name
            for at in {0, path.stat().st_size // 2, path.stat().st_size - 1}:
                before = flip(path, at)
                try:
                    findings = examine(folder, folders - {folder})[1]
                finally:
                    path.write_bytes(before)
                assert [(f.path, f.problem) for f in findings] == [(name, "changed")], (path, at)
            published += 1
    beside = {smoke / "results/smoke/report.html", *(smoke / "results/.state").rglob("*")}  # a link, and locks
    files = [path for path in (smoke / "results").rglob("*") if path.is_file() and path not in beside]
    assert published == len(files), "every file is some artifact's"


def test_the_next_run_makes_again_what_was_damaged_and_nothing_else(copy: Path, dag: Dag) -> None:
    before, begun = contents(copy, dag), runs(copy, dag)
    tokens, model, table = dag.of("tokenize")[0], dag.of("convert")[1], dag.of("table")[0]
    results = copy / "results"
    flip(results / tokens.folder / "train.bin", 100)
    (results / model.folder / "model.safetensors").unlink()
    flip(results / table.folder / "record.json", 50)
    (results / dag.of("figures")[0].folder / "notes.txt").write_text("a user's")
    done = verb(copy, "verify", "--scale", "smoke", "--dry-run")
    assert done.returncode == 1 and not (results / ".quarantine").exists()
    done = verb(copy, "verify", "--scale", "smoke")
    assert done.returncode == 1
    for line in (
        f"results/{tokens.folder}/train.bin: changed: its SHA-256 is not the published one",
        f"results/{model.folder}/model.safetensors: missing: ",
        f"results/{table.folder}/record.json: changed: ",
        "results/smoke/figures/notes.txt: extra: in no record",
        f"{len(dag.jobs)} artifacts of {len(dag.jobs)}, ",
        "4 damaged",
    ):
        assert line in done.stdout
    (aside,) = (results / ".quarantine").iterdir()
    assert (aside / "smoke/figures/notes.txt").read_text() == "a user's", "nothing is deleted"
    assert (aside / tokens.folder / "train.bin").exists()
    done = snakemake(copy)
    assert done.returncode == 0, done.stdout[-3000:]
    assert contents(copy, dag) == before
    # A damaged record is written again from its copy, and what is downstream looks and finds the same content.
    assert runs(copy, dag) == begun | {tokens: begun[tokens] + 1, model: begun[model] + 1}
    assert verb(copy, "verify", "--scale", "smoke").returncode == 0
    assert "Nothing to be done" in snakemake(copy).stdout


def test_a_damaged_twin_of_a_record_is_written_again_from_the_other(tmp_path: Path) -> None:
    folder = publish(tmp_path, {"data.bin": "0123456789"})
    for name in (RECORD, RECORD_COPY):
        whole = flip(folder / name, 30)
        record, findings = examine(folder, set())
        set_aside(folder, record, findings, tmp_path / "aside" / name)
        assert (folder / name).read_bytes() == whole
        assert examine(folder, set())[1] == []
        assert (tmp_path / "aside" / name / name).exists()


def test_an_artifact_whose_records_are_both_damaged_is_set_aside_whole(tmp_path: Path) -> None:
    folder = publish(tmp_path, {"data.bin": "0123456789"})
    for name in (RECORD, RECORD_COPY):
        flip(folder / name, 30)
    record, findings = examine(folder, set())
    assert record is None and len(findings) == 2
    set_aside(folder, record, findings, tmp_path / "aside")
    assert not (folder / RECORD).exists() and not (folder / RECORD_COPY).exists()
    assert (folder / "data.bin").exists(), "in no record that can be read: the next publication replaces it"


@pytest.mark.parametrize("target", ["results/smoke/nothing", "nothing"])
def test_an_unknown_target_is_named(smoke: Path, target: str) -> None:
    done = verb(smoke, "verify", "--scale", "smoke", target)
    assert done.returncode == 1
    assert f"error: '{target}': nothing of scale 'smoke' has this name; give a stage (corpus, tokenizer" in done.stderr
