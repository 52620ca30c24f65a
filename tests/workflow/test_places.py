"""Results that lie on two file systems, and folders with odd names."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.artifacts import failures, store
from pipeline.artifacts.record import RECORD
from pipeline.config.globs import find
from pipeline.dag.dag import STATE, Dag
from pipeline.engines.verl.trainer import quoted
from pipeline.errors import PipelineError
from tests.helpers.repository import contents, planned, remove, runs, snakemake, verb
from tests.unit.test_artifact import make, record

ODD = ["実験 (v2) it's", 'a=b, c "d" $E #g % & ; ~ !', "'", "x'y\"z'"]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than `tmp_path`."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system to write on (/dev/shm)")
    folder = memory / f"moe-sparsity-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def publish(tmp_path: Path, folder: Path, files: dict[str, str]) -> None:
    made = make(tmp_path / "made", files)
    store.publish(made, folder, record(made))
    shutil.rmtree(made, ignore_errors=True)  # copied


def files(folder: Path) -> dict[str, str]:
    """Text of every file but the records."""
    return {
        p.relative_to(folder).as_posix(): p.read_text()
        for p in folder.rglob("*")
        if p.is_file() and "record" not in p.name
    }


@pytest.mark.parametrize("link", ["scale", "artifact"])
def test_an_artifact_is_published_onto_another_file_system(link: str, tmp_path: Path, elsewhere: Path) -> None:
    folder = tmp_path / "smoke" / "corpus"
    if link == "scale":
        (tmp_path / "smoke").symlink_to(elsewhere)
    else:
        (tmp_path / "smoke").mkdir()
        folder.symlink_to(elsewhere)
    publish(tmp_path, folder, {"a.txt": "1", "sub.json": "2"})
    publish(tmp_path, folder, {"a.txt": "3", "b.txt": "4"})
    assert files(folder) == {"a.txt": "3", "b.txt": "4"}
    store.check_files(folder, store.read_record(folder))


@pytest.mark.parametrize("second", [True, False], ids=["two file systems", "one file system"])
def test_killed_at_any_moment_of_publication_the_old_or_the_new_artifact_is_there(
    second: bool, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each system call that changes something, one after the other."""
    where: Path = request.getfixturevalue("elsewhere") if second else tmp_path
    calls = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync")
    honest = {name: getattr(os, name) for name in calls}
    allowed = [0]

    class Killed(BaseException):
        pass

    def limited(name: str):
        def call(*args, **kwargs):
            if allowed[0] == 0:
                raise Killed
            allowed[0] -= 1
            return honest[name](*args, **kwargs)

        return call

    finished = moment = 0
    while not finished:
        folder = where / f"published-{moment}"
        publish(tmp_path, folder, {"a.txt": "old", "b.txt": "old"})
        made = make(tmp_path / "made", {"a.txt": "new", "b.txt": "new"})
        wanted = record(made, "e" * 16)
        with monkeypatch.context() as patched:
            allowed[0] = moment
            for name in calls:
                patched.setattr(os, name, limited(name))
            try:
                store.publish(made, folder, wanted)
                finished = 1
            except Killed:
                pass
        if (folder / RECORD).exists():
            there = store.read_record(folder)
            store.check_files(folder, there)
            assert finished or there.fingerprint in ("e" * 16, "f" * 16)
        shutil.rmtree(tmp_path / "made", ignore_errors=True)
        publish(tmp_path, folder, {"a.txt": "again", "b.txt": "again"})
        assert files(folder) == {"a.txt": "again", "b.txt": "again"} and not (folder / store.INCOMING).exists()
        moment += 1
    assert moment > 10


def test_a_full_second_disk_leaves_nothing_of_a_publication_behind(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, elsewhere / "x", {"a.txt": "old"})

    def full(made: Path, to: Path) -> None:
        to.mkdir()
        (to / "a.txt").write_text("n")
        raise shutil.Error([(str(made), str(to), "[Errno 28] No space left on device")])

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(OSError) as error:
        publish(tmp_path, elsewhere / "x", {"a.txt": "new", "b.txt": "new"})
    assert "no space left on the disk" in str(failures.explain(error.value, tmp_path))
    assert files(elsewhere / "x") == {"a.txt": "old"}


@pytest.mark.parametrize("what", ["results", "scale", "point", "state"])
def test_a_scale_whose_folders_are_links_to_another_disk(what: str, copy: Path, dag: Dag, elsewhere: Path) -> None:
    before, begun, job = contents(copy, dag), runs(copy, dag), dag.of("tokenize")[0]
    places = {
        "results": "results",
        "scale": f"results/{dag.name}",
        "point": f"results/{job.folder.parent}",
        "state": f"results/{STATE}",
    }
    shutil.move(copy / places[what], elsewhere / "moved")
    (copy / places[what]).symlink_to(elsewhere / "moved")
    assert planned(copy) == set()
    remove(copy, job)
    done = snakemake(copy, "tokenize")
    assert done.returncode == 0, done.stdout
    assert contents(copy, dag) == before and runs(copy, dag) == begun | {job: begun[job] + 1}
    damaged = copy / "results" / job.folder / "tokens.idx"
    damaged = damaged if damaged.exists() else next((copy / "results" / job.folder).glob("*.idx"))
    damaged.write_bytes(b"x")
    assert verb(copy, "verify", "--scale", dag.name).returncode == 1
    assert "0 damaged" in verb(copy, "verify", "--scale", dag.name).stdout


def test_a_disk_that_is_not_mounted_is_refused_before_any_job(copy: Path, dag: Dag, tmp_path: Path) -> None:
    shutil.rmtree(copy / "results" / dag.name)
    (copy / "results" / dag.name).symlink_to(tmp_path / "not-mounted")
    done = snakemake(copy)
    assert done.returncode != 0 and "Traceback" not in done.stdout
    assert f"results/{dag.name}: a link to {tmp_path / 'not-mounted'}, which is not there; mount it" in done.stdout


@pytest.mark.parametrize("name", [*ODD, "${oc.env:HOME} {a}"])
def test_a_path_reaches_verl_as_it_is(name: str, tmp_path: Path) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    path = tmp_path / name / "train.parquet"
    override = OverridesParser.create().parse_override(f"data.train_files={quoted(path)}")
    assert OmegaConf.create({"path": override.value()}).path == str(path)


def test_characters_that_nobody_can_quote_are_refused(tmp_path: Path) -> None:
    for name in ODD:
        (tmp_path / name).mkdir()
        failures.check_name(tmp_path / name)
    for character in "*?[]{}:\\\n\x07":
        with pytest.raises(PipelineError, match="move the project to a folder without"):
            failures.check_name(tmp_path / f"a{character}b")


def test_a_name_of_the_project_that_cannot_be_is_refused_by_snakemake(tmp_path: Path, smoke: Path) -> None:
    folder = tmp_path / "a[1]"
    shutil.copytree(smoke, folder, symlinks=True, ignore=shutil.ignore_patterns("results", ".snakemake"))
    done = snakemake(folder, "--dry-run")
    assert done.returncode != 0 and "Traceback" not in done.stdout
    assert "its name has '['" in done.stdout and "move the project to a folder without" in done.stdout


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("notes [1]/*.jsonl", ["notes [1]/a.jsonl", "notes [1]/b [x].jsonl"]),
        ("notes [1]/b [x].jsonl", ["notes [1]/b [x].jsonl"]),
        ("notes [12]/*.jsonl", ["notes 1/c.jsonl"]),
        ("**/*.jsonl", ["notes 1/c.jsonl", "notes [1]/a.jsonl", "notes [1]/b [x].jsonl"]),
        ("notes */c.jsonl", ["notes 1/c.jsonl"]),
        ("none/*.jsonl", []),
    ],
)
def test_a_sources_files_may_be_in_folders_with_any_name(
    pattern: str, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, {"notes [1]/a.jsonl": "", "notes [1]/b [x].jsonl": "", "notes 1/c.jsonl": "", "notes [1]/d.txt": ""})
    monkeypatch.chdir(tmp_path)
    assert [path.as_posix() for path in find(Path(), pattern)] == found
    assert find(Path(), f"{tmp_path}/{pattern}") == [tmp_path / name for name in found]


def test_commands_start_from_a_folder_with_an_odd_name(tmp_path: Path, smoke: Path) -> None:
    """Snakemake's shell finds Python by a path with quotes and `$` in it."""
    odd = tmp_path / ODD[1]
    shutil.copytree(smoke, odd / "project", symlinks=True, ignore=shutil.ignore_patterns("results", ".snakemake"))
    (odd / "venv").symlink_to(sys.prefix)
    command = [
        str(odd / "venv" / "bin" / "python"),
        "-m",
        "snakemake",
        "--cores",
        "2",
        "tokenizer",
        "--config",
        "scale=smoke",
    ]
    env = os.environ | {"PYTHONPATH": str(odd / "project"), "TMPDIR": str(odd), "HOME": str(odd)}
    done = subprocess.run(command, cwd=odd / "project", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (odd / "project" / "results" / "smoke" / "data" / "tokenizer" / "record.json").exists()


def test_a_report_whose_folder_was_deleted_is_made_anew(copy: Path, dag: Dag) -> None:
    """As docs/howto/own-grid.md advises for what is to be made again."""
    shutil.rmtree(copy / "results" / "smoke" / "report")
    done = snakemake(copy)
    assert done.returncode == 0, done.stdout
    assert (copy / "results" / "smoke" / "report.html").read_text().startswith("<!doctype html>")
