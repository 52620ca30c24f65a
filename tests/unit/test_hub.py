"""Files from outside: downloads that resume and are verified, and repositories of a stand-in for the hub."""

import re
from pathlib import Path

import pytest

from pipeline.artifacts.record import sha256_file
from pipeline.data.checkpoints import HubModel
from pipeline.data.download import download, git_blob
from pipeline.data.hub import Repository
from pipeline.data.registry import BenchmarkData
from pipeline.errors import PipelineError
from pipeline.stages import benchdata
from tests.helpers.hub import COMMIT, Hub, point_at, serve

DATA = bytes(range(256)) * 40


@pytest.fixture
def served(monkeypatch):
    files = {"README.md": b"a card", "data/test-0.bin": DATA, "data/deep/test-1.bin": DATA[:-1], "other/x.bin": b"x"}
    with serve(Hub(files=files, small={"README.md"})) as hub:
        point_at(hub, monkeypatch)
        yield hub


def repository(hub: Hub, state: Path, revision: str | None = COMMIT) -> Repository:
    return Repository(hub.repo, revision, "dataset", state, way_out="the way out", asker="mine")


def test_a_download_resumes_and_is_refused_when_it_is_another_file(tmp_path):
    (tmp_path / "x").write_bytes(DATA)
    digest = sha256_file(tmp_path / "x")
    with serve(Hub(plain={"model": DATA})) as served:
        url = f"{served.url}/plain/model"
        (tmp_path / "model.part").write_bytes(DATA[:1000])
        download(url, tmp_path / "model", digest)
        assert served.asked == [("model", "bytes=1000-")] and (tmp_path / "model").read_bytes() == DATA
        with pytest.raises(PipelineError, match=r"other: SHA-256 of what came from .* is [0-9a-f]{64}, not 0000"):
            download(url, tmp_path / "other", "0" * 64)
        assert not (tmp_path / "other").exists() and not (tmp_path / "other.part").exists()
        with pytest.raises(PipelineError, match=r"plain/gone: cannot be downloaded: 404"):
            download(f"{served.url}/plain/gone", tmp_path / "gone")


def test_a_connection_that_ends_early_is_continued_at_the_byte(served, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.data.download.WAIT_S", 0)
    served.files["data/test-0.bin"] = long = 20 * DATA
    served.cut["data/test-0.bin"] = 150_000
    assert repository(served, tmp_path).fetch("data/test-0.bin").read_bytes() == long
    (_, first), (_, second) = served.asked
    assert first is None and second.startswith("bytes=1"), "what came in whole blocks is kept"


def test_what_a_killed_process_left_of_a_file_is_continued_and_a_whole_file_is_not_fetched_again(served, tmp_path):
    part = tmp_path / "incoming" / "data" / "test-0.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(DATA[:5000])
    path = repository(served, tmp_path).fetch("data/test-0.bin")
    assert served.asked == [("data/test-0.bin", "bytes=5000-")] and path.read_bytes() == DATA
    repository(served, tmp_path).fetch("data/test-0.bin")
    assert len(served.asked) == 1
    repository(served, tmp_path).drop("data/test-0.bin")
    assert not path.exists()


@pytest.mark.parametrize(("path", "what"), [("data/test-0.bin", "SHA-256"), ("README.md", "git digest")])
def test_bytes_that_are_not_the_hubs_are_thrown_away_and_fetched_again(served, tmp_path, path, what):
    repo, content = repository(served, tmp_path), served.files[path]
    assert repo.files  # listed, with its digests, before it is damaged
    served.files[path] = b"X" + content[1:]
    with pytest.raises(PipelineError, match=f"{what} of what came from .*{path} is [0-9a-f]+, not [0-9a-f]+; the file"):
        repo.fetch(path)
    served.files[path] = content
    assert repo.fetch(path).read_bytes() == content
    assert served.asked == [(path, None)] * 2


def test_gits_name_of_a_file_is_gits(tmp_path):
    (tmp_path / "x").write_bytes(b"hello\n")
    assert git_blob(tmp_path / "x") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_branch_is_resolved_once_and_kept_to(served, tmp_path):
    assert repository(served, tmp_path, "main").commit == COMMIT
    assert served.listings == 1
    (tmp_path / "commit").write_text("f" * 40)  # the branch stood elsewhere when the download began
    assert repository(served, tmp_path, "main").commit == "f" * 40
    assert served.listings == 1


@pytest.mark.parametrize(
    ("repo", "revision"), [("someone/else", COMMIT), ("someone/else", "main"), ("someone/texts", "e" * 40)]
)
def test_what_the_hub_does_not_have_is_said_in_one_line_with_the_way_out(served, tmp_path, repo, revision):
    with pytest.raises(PipelineError) as error:
        _ = Repository(repo, revision, "dataset", tmp_path, way_out="the way out", asker="mine").files
    assert re.fullmatch(rf"mine: {repo}@{revision}: the hub does not give it: .*404.*; the way out", str(error.value))


def test_evaluation_data_is_fetched_by_the_same_globs_as_it_is_gathered(served, tmp_path):
    patterns = {
        "data/*.bin": ["data/test-0.bin"],
        "data/**/*.bin": ["data/deep/test-1.bin", "data/test-0.bin"],
        "*": ["README.md"],
    }
    for number, (pattern, expected) in enumerate(patterns.items()):
        served.asked.clear()
        data = BenchmarkData(repo=served.repo, revision=None, files=[pattern], licence="MIT")
        fetched = benchdata.fetch("mine", data, tmp_path / str(number))
        assert fetched.commit == COMMIT and sorted(path for path, _ in served.asked) == expected
        assert benchdata.gather("mine", data, fetched.folder, tmp_path / f"out{number}") == expected


def test_a_checkpoint_is_the_files_at_the_top_level(served, tmp_path, monkeypatch):
    monkeypatch.setattr(HubModel, "files", {"config.json": None, "original/params.json": None})
    assert HubModel("org/tiny", COMMIT, tmp_path).names == ["config.json"]
