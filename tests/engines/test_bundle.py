"""Bundles: what a cluster without a network gets, and what unpacking refuses."""

import argparse
import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from pipeline.artifacts.record import RECORD
from pipeline.commands import bundle as module
from pipeline.commands.bundle import MANIFEST, add_parser, bundle, unbundle
from pipeline.dag.dag import Dag
from pipeline.dag.survey import survey
from pipeline.errors import PipelineError
from pipeline.runner import execute
from pipeline.stages import corpus, tokenizer
from tests.helpers.config import CONFIG

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> tuple[Path, Path]:
    """A repository's root with the fetched artifacts of scale smoke, and its bundle."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(CONFIG, root / "config")
    shutil.copytree(ROOT / "workflow" / "envs", root / "workflow" / "envs")
    dag = Dag.load("smoke", root / "config" / "grid.yaml")
    for job in dag.fetches:
        execute(dag, job, {"corpus": corpus.run, "tokenizer": tokenizer.run}[job.stage], root / "results")
    bundle(dag, root / "smoke.tar", root=root, config=root / "config")
    return root, root / "smoke.tar"


def tree(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and ".state" not in p.parts and p.suffix != ".tar")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def rewritten(packed: Path, to: Path, change) -> Path:
    """The bundle with its members changed: `change(name, data)` returns them, or None to leave one out."""
    with tarfile.open(packed) as old, tarfile.open(to, "w") as new:
        for member in old:
            data = change(member.name, old.extractfile(member).read())
            if data is not None:
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
    return to


def test_a_bundle_lays_out_the_same_files_and_may_be_repeated(packed, tmp_path):
    root, tar = packed
    written, there = unbundle(tar, tmp_path)
    expected = {name: data for name, data in tree(root).items() if name.startswith(("results/", "config/"))}
    files = tree(tmp_path)
    assert {name for name in expected if name.endswith(".yaml") or name.startswith("results/")} <= set(files)
    assert all(data == tree(root)[name] for name, data in files.items())
    assert {"workflow/envs/cpu.lock", "workflow/envs/cuda.lock"} <= set(files)
    assert (written, there) == (len(files), 0)
    assert unbundle(tar, tmp_path) == (0, len(files))
    again = Dag.load("smoke", tmp_path / "config" / "grid.yaml")
    assert survey(again, tmp_path / "results").stale == set()
    for job in again.fetches:
        assert (tmp_path / "results" / job.record).exists()


def test_half_an_unpacked_artifact_has_no_record(packed, tmp_path, monkeypatch):
    _, tar = packed
    real, count = module._extract, []

    def dies(archive, member, *rest):
        if member.name.endswith(f"corpus/{RECORD}"):
            raise KeyboardInterrupt
        count.append(member.name)
        return real(archive, member, *rest)

    monkeypatch.setattr(module, "_extract", dies)
    with pytest.raises(KeyboardInterrupt):
        unbundle(tar, tmp_path)
    assert any("documents" in name for name in count) and not list(tmp_path.rglob(RECORD))
    monkeypatch.undo()
    assert unbundle(tar, tmp_path)[1] == len(count)


def test_a_different_file_is_never_overwritten(packed, tmp_path):
    _, tar = packed
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "grid.yaml").write_text("mine")
    with pytest.raises(PipelineError, match=r"config/grid.yaml: exists and differs; nothing was written"):
        unbundle(tar, tmp_path)
    assert tree(tmp_path) == {"config/grid.yaml": b"mine"}


def test_a_bundle_is_laid_out_where_the_scales_folder_is_a_link_to_another_disk(packed, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "into" / "results").mkdir(parents=True)
    (tmp_path / "into" / "results" / "smoke").symlink_to(tmp_path / "disk")
    unbundle(packed[1], tmp_path / "into")
    assert (tmp_path / "disk" / "data" / "tokenizer" / RECORD).exists()


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "results/../../outside"])
def test_a_manifest_that_leaves_the_folder_is_refused(packed, tmp_path, name):
    def change(member: str, data: bytes) -> bytes:
        if member != MANIFEST:
            return data
        manifest = json.loads(data)
        manifest["files"][0]["path"] = name
        return json.dumps(manifest).encode()

    evil = rewritten(packed[1], tmp_path / "evil.tar", change)
    with pytest.raises(PipelineError, match="does not stay below the folder; nothing was written"):
        unbundle(evil, tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_a_link_in_place_of_a_file_is_refused(packed, tmp_path):
    with tarfile.open(packed[1]) as old, tarfile.open(tmp_path / "evil.tar", "w") as new:
        for member in old:
            if member.name == "config/grid.yaml":
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "../outside", 0
                new.addfile(member)
            else:
                new.addfile(member, old.extractfile(member))
    with pytest.raises(PipelineError, match="evil.tar: .*config/grid.yaml"):
        unbundle(tmp_path / "evil.tar", tmp_path / "into")
    assert not (tmp_path / "into" / "config" / "grid.yaml").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda name, data: data[:-1] + b"?" if name.endswith("documents-00000.parquet") else data,
            "is damaged: its SHA-256",
        ),
        (
            lambda name, data: None if name.endswith("tokenizer.json") else data,
            "truncated: '.*tokenizer.json' is not in it",
        ),
        (lambda name, data: None if name == MANIFEST else data, "does not begin with manifest.json"),
    ],
)
def test_a_damaged_bundle_is_refused_and_the_file_named(packed, tmp_path, change, message):
    bad = rewritten(packed[1], tmp_path / "bad.tar", change)
    with pytest.raises(PipelineError, match=message):
        unbundle(bad, tmp_path / "into")
    assert not [p for p in (tmp_path / "into").rglob(".*.part")]


def test_a_truncated_bundle_is_refused(packed, tmp_path):
    data = packed[1].read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(data) // 2])
    with pytest.raises(PipelineError, match="cut.tar: .*truncated"):
        unbundle(tmp_path / "cut.tar", tmp_path / "into")
    (tmp_path / "text.tar").write_text("no tar")
    with pytest.raises(PipelineError, match="text.tar: not a bundle"):
        unbundle(tmp_path / "text.tar", tmp_path / "into")


def test_what_is_missing_stale_or_changed_is_not_packed(packed, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(packed[0], root)
    dag = Dag.load("smoke", root / "config" / "grid.yaml")
    with pytest.raises(PipelineError, match="tokenize/record.json: not there yet"):
        bundle(dag, root / "out.tar", ["tokenize"], root, root / "config")
    shard = next(root.rglob("documents-00000.parquet"))
    data = bytearray(shard.read_bytes())
    data[50] ^= 1
    shard.write_bytes(data)
    with pytest.raises(PipelineError, match="its content is not what its record says"):
        bundle(dag, root / "out.tar", root=root, config=root / "config")
    assert not [p for p in root.iterdir() if "out.tar" in p.name]


def test_the_command_line_packs_and_unpacks(packed, tmp_path, monkeypatch, capsys):
    root, _ = packed
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(required=True))
    monkeypatch.chdir(root)
    out = tmp_path / "cli.tar"
    args = parser.parse_args(["bundle", "--scale", "smoke", "--out", str(out)])
    args.func(args)
    args = parser.parse_args(["unbundle", str(out), "--into", str(tmp_path / "into")])
    args.func(args)
    assert "files written, 0 were there" in capsys.readouterr().out
    dates = [(folder / "config" / "grid.yaml").stat().st_mtime for folder in (tmp_path / "into", root)]
    assert dates[0] == int(dates[1])
