"""Globs mean one thing, for files of a hub and of this machine; and no paper scale trains on a held-out file."""

import itertools
import json
import re
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import pytest

from pipeline.artifacts.store import read_record
from pipeline.commands import plan
from pipeline.config.globs import find, for_training, held_out, matches
from pipeline.config.scales import load_grid
from pipeline.dag.dag import Dag
from pipeline.data.registry import BenchmarkData, load_sources
from pipeline.data.sources.huggingface import HuggingFaceDataset
from pipeline.errors import PipelineError
from pipeline.stages import benchdata
from pipeline.tasks.offline_hub.mirror import present_configs
from tests.helpers.config import CONFIG, dump
from tests.helpers.data import documents, make, with_source

CASES = {  # pattern -> (paths it stands for, paths it does not)
    "*": (["a", ".hidden", "a.b"], ["a/b", ""]),
    "a": (["a"], ["A", "b/a", "a/b", "aa"]),
    "./a//b": (["a/b"], ["a", "./b"]),
    "*.txt": (["a.txt", ".txt", "ä b.txt"], ["a/b.txt", "a.txt.gz", "a.TXT", "atxt"]),
    "?.txt": (["a.txt", "..txt"], [".txt", "ab.txt", "a/.txt"]),
    "data/*": (["data/a"], ["data/a/b", "data", "x/data/a"]),
    "data/*/x": (["data/a/x"], ["data/x", "data/a/b/x"]),
    "data/**": (["data/a", "data/a/b/c", "data/.a/b"], ["data", "database/a", "x/data/a"]),
    "**": (["a", "a/b/c", ".a"], []),
    "**/x": (["x", "a/x", "a/b/x"], ["xx", "a/xx", "x/a"]),
    "**/*": (["x", "a/b/x"], []),
    "**/**/x": (["x", "a/x", "a/b/x"], ["a/b"]),
    "a/**/x": (["a/x", "a/b/x", "a/b/c/x"], ["x", "b/a/x", "ax", "a/xx"]),
    "a/**/b/*.gz": (["a/b/x.gz", "a/c/d/b/x.gz", "a/b/b/x.gz"], ["a/x.gz", "a/b/c/x.gz"]),
    "**/train/**": (["train/a", "x/train/y/z"], ["train", "x/training/y"]),
    "a*/*b": (["ax/yb", "a/b"], ["a/b/b", "ab"]),
    "part-[0-9]": (["part-3"], ["part-a", "part-10", "part-/"]),
    "part-[!0-9]": (["part-a"], ["part-3", "part-/"]),
    "[[]v2[]]/x": (["[v2]/x"], ["v/x", "2/x"]),
    "a[": (["a["], ["a"]),
    "{a,b}": (["{a,b}"], ["a", "b"]),
    "a.b": (["a.b"], ["axb"]),
    "a+(b)|c": (["a+(b)|c"], ["aab", "c"]),
    "a\nb/*": (["a\nb/c\nd"], ["a/c"]),
    ".*/x": ([".git/x"], ["git/x"]),
    "実験 (v2) it's/*": (["実験 (v2) it's/ä"], []),
}
PATHS = [
    (pattern, path, yes)
    for pattern, both in CASES.items()
    for yes, path in [*((True, path) for path in both[0]), *((False, path) for path in both[1])]
]


@pytest.mark.parametrize(("pattern", "path", "wanted"), PATHS)
def test_a_star_stays_within_a_folder_and_two_cross_folders(pattern, path, wanted):
    assert matches(path, pattern) is wanted


@pytest.mark.parametrize("pattern", [pattern for pattern in CASES if pattern not in ("a[", "[[]v2[]]/x")])
def test_files_of_this_machine_are_found_by_the_same_meaning(tmp_path, pattern):
    paths = {str(PurePosixPath(path)) for yes, no in CASES.values() for path in yes + no if path and "//" not in path}
    made = set()
    for path in sorted(paths, key=lambda path: (-path.count("/"), path)):
        target = tmp_path / path
        if not any(parent.is_file() for parent in target.parents) and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
            made.add(path)
    assert len(made) > 35
    found = [path.relative_to(tmp_path).as_posix() for path in find(tmp_path, pattern)]
    assert sorted(found) == sorted(path for path in made if matches(path, pattern))


def test_a_folder_with_brackets_in_its_name_is_found_as_written_and_links_are_followed_by_name_only(tmp_path):
    folder = tmp_path / "run [1]"
    (folder / "real" / "deep").mkdir(parents=True)
    (folder / "real" / "deep" / "x.txt").touch()
    (folder / "link").symlink_to(folder / "real")
    (folder / "loop").symlink_to(folder)
    assert [str(p.relative_to(folder)) for p in find(Path(), f"{folder}/**/*.txt")] == ["real/deep/x.txt"]
    assert len(find(Path(), f"{folder}/link/*/x.txt")) == 1
    assert find(tmp_path, "run [[]1]/real/deep/*") == find(tmp_path, "run [1]/real/deep/x.txt") != []
    assert find(tmp_path, "run [1]/real") == [], "a folder is no file"


@pytest.mark.parametrize(
    ("kind", "pattern", "message"),
    [
        ("huggingface", "data/**.parquet", r"write '\*\*/\*.parquet' in place of '\*\*.parquet'"),
        ("huggingface", "a**/x", r"'\*\*' stands for whole folders"),
        ("huggingface", "data/flan/", r"'data/flan/' names a folder; write 'data/flan/\*\*'"),
        ("huggingface", "/data/x", "globs of a data set are relative to it"),
        ("huggingface", "../x", "globs of a data set are relative to it"),
        ("huggingface", "", "a glob that is empty names no file"),
        ("local", "data/***/x", r"'\*\*' stands for whole folders"),
        ("local", "data/", r"'data/' names a folder; write 'data/\*\*'"),
        ("local", "", "a glob that is empty names no file"),
        ("benchmark", "data/**.parquet", r"'\*\*' stands for whole folders"),
    ],
)
def test_a_glob_that_does_not_mean_what_it_seems_to_is_refused(tmp_path, kind, pattern, message):
    base = {"licence": "MIT", "repo": "a/b", "revision": "0" * 40}
    registry = {"datasets": {}, "tokenizers": {}, "benchmarks": {}}
    if kind == "benchmark":
        registry["benchmarks"]["mine"] = base | {"files": [pattern]}
    elif kind == "local":
        registry["datasets"]["mine"] = {"kind": kind, "licence": "MIT", "path": pattern}
    else:
        registry["datasets"]["mine"] = base | {"kind": kind, "files": ["README.md", pattern]}
    (tmp_path / "sources.yaml").write_text(dump(registry))
    with pytest.raises(PipelineError, match=f"sources.yaml:\\d+: .*mine.*{message}"):
        load_sources(tmp_path / "sources.yaml")


@pytest.mark.parametrize(
    "path",
    [
        "main/test/0.jsonl.zst",
        "test-00000-of-00001.parquet",
        "data/test.parquet",
        "foo_test.jsonl.gz",
        "x/basic_math_TEST.jsonl",
        "Validation/x",
        "validation-00000.parquet",
        "valid.jsonl",
        "a/val/0.gz",
        "wiki_val_0.gz",
        "dev/x",
        "squad-dev-v1.1.json",
        "eval.jsonl",
        "a.eval.jsonl",
        "evaluation/x",
        "held-out/x",
        "heldout.txt",
        "data/testmini-0.parquet",
        "test0.txt",
    ],
)
def test_names_of_held_out_splits_are_known(path):
    assert held_out(path, "**")
    taken, left_out = for_training([path, "train/x"], ["**"], "it")
    assert (taken, left_out) == (["train/x"], [path])


@pytest.mark.parametrize("path", ["contest.txt", "latest/x", "train/attest-0.gz", "device/x", "medieval", "valley.txt"])
def test_words_that_hold_such_a_name_are_not_taken_for_one(path):
    assert not held_out(path, "**")


def test_a_pattern_takes_a_held_out_file_only_if_it_writes_the_word_out():
    paths = ["data/test/a", "data/train/a", "data/train/test-0"]
    assert for_training(paths, ["data/test/*", "data/train/*"], "it") == (
        ["data/test/a", "data/train/a"],
        ["data/train/test-0"],
    )
    with pytest.raises(PipelineError, match=r"it has no file data/train/t\*-0 but data/train/test-0, held out"):
        for_training(paths, ["data/test/*", "data/train/t*-0"], "it")


def test_each_pattern_that_takes_nothing_is_named_and_not_only_all_together():
    with pytest.raises(PipelineError, match=r"it has no file b/\* \(`\*` stays within a folder, `\*\*` crosses"):
        for_training(["a/x", "b/c/x"], ["a/*", "b/*"], "it")


# ------------------------------------------------------------------------------------------- the paper's sources

WORDS = ("test", "validation", "valid", "val", "dev", "eval")


def paper_sources() -> dict[str, HuggingFaceDataset]:
    """The sources of every scale but those of generated text."""
    grid, datasets = load_grid(CONFIG / "grid.yaml"), load_sources(CONFIG / "sources.yaml").datasets
    names = {name for scale in grid.scales.values() for name in scale.data.sources}
    return {name: source for name in sorted(names) if isinstance(source := datasets[name], HuggingFaceDataset)}


def held_out_paths(pattern: str) -> set[str]:
    """Paths that look like the pattern's but are of a held-out split: a wildcard, or a folder more, has the word."""
    found = set()
    for word, (before, after) in itertools.product(WORDS, [("", ""), ("x_", ""), ("", "-00000-of-1"), ("x-", ".y")]):
        name = f"{before}{word}{after}"
        plain = re.sub(r"\[.*?\]|\?", "0", pattern)
        places = [match.start() for match in re.finditer(r"\*+", plain)]
        for place in places:  # this wildcard is the word, the others are something else
            found.add((plain[:place] + name + plain[place:].lstrip("*")).replace("**", "0").replace("*", "0"))
        folders = PurePosixPath(plain.replace("*", "0")).parts
        for i in range(len(folders)):  # a folder more, which a `*` that crosses folders would take
            found.add("/".join([*folders[:i], name, *folders[i:]]))
            found.add("/".join([*folders[:i], name, *folders[i + 1 :]]))
        found.add(str(PurePosixPath(plain.replace("*", "0")).with_name(name + "".join(PurePosixPath(plain).suffixes))))
    return {path for path in found if set(re.split(r"[^a-z]+", path.lower())) & set(WORDS)}


# Files of the hub's data sets as other public code names them, and as they could be.
LISTING = Path(__file__).with_name("hub_listing.txt").read_text().split()


def listed(monkeypatch, source: HuggingFaceDataset, paths: list[str]) -> list[str]:
    """The files that `source` takes of a data set with these."""
    from huggingface_hub.hf_api import RepoFile

    files = [RepoFile(path=path, size=1, oid="0" * 40) for path in paths]
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: SimpleNamespace(list_repo_tree=lambda *_, **__: files))
    pinned = source.model_copy(update={"revision": "0" * 40})
    return [part.name for part in pinned.open("mine", Path("nowhere")).parts]


@pytest.mark.parametrize(("name", "source"), paper_sources().items())
def test_no_paper_source_can_take_a_file_of_a_test_or_validation_split(monkeypatch, name, source):
    if not source.files:
        assert source.split == "train", "the data set's card says which files those are"
        return
    adversaries = sorted(set().union(*(held_out_paths(pattern) for pattern in source.files)))
    assert len(adversaries) >= 24
    taken = listed(monkeypatch, source, LISTING + adversaries)
    assert taken and set(taken) <= set(LISTING) - set(adversaries)
    assert not [path for path in taken if set(re.split(r"[^a-z]+", path.lower())) & set(WORDS)]


def test_the_plan_lists_the_files_that_a_paper_scale_reads_and_none_is_held_out():
    lines = plan.read(Dag.load("math", CONFIG / "grid.yaml"))
    assert len(lines) == 27
    assert "reads gsm8k-merged: allenai/dolmino-mix-1124 at de044e8" in "\n".join(lines)
    for line in lines:
        assert "no repo is known" in line or not held_out(line, "**"), line


def test_both_parts_of_gsm8k_are_read_without_their_test_questions(monkeypatch):
    sources = paper_sources()
    assert listed(monkeypatch, sources["gsm8k-merged"], LISTING) == [
        "data/math/gsm8k/main/train/0.jsonl.zst",
        "data/math/gsm8k/socratic/train/0.jsonl.zst",
    ]
    assert listed(monkeypatch, sources["gsm8k-en"], LISTING) == [
        "main/train-00000-of-00001.parquet",
        "socratic/train-00000-of-00001.parquet",
    ]


def test_held_out_files_of_this_machine_are_left_out_and_said(tmp_path):
    for name in ("a", "b_test", "val"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    dag = with_source(tmp_path, path=f"{tmp_path}/*.jsonl")
    corpus = make(dag, tmp_path / "results", ("corpus",)) / "mine" / "corpus"
    assert documents(corpus) == ["a"]
    metrics = read_record(corpus).metrics
    said = metrics["held_out_files"]
    assert metrics["warnings"] == [f"2 files are held out by their names and not trained on, as {said['first'][0]}"]
    assert said["files"] == 2 and said["first"] == [str(tmp_path / "b_test.jsonl"), str(tmp_path / "val.jsonl")]
    named = with_source(tmp_path, path=f"{tmp_path}/*_test.jsonl")
    assert documents(make(named, tmp_path / "named", ("corpus",)) / "mine" / "corpus") == ["b_test"]


def test_a_card_that_names_a_file_elsewhere_is_refused(monkeypatch):
    monkeypatch.setattr(HuggingFaceDataset, "_of_split", lambda *_: ["train.parquet", ""])
    source = HuggingFaceDataset(kind="huggingface", repo="a/b", revision="0" * 40, licence="MIT")
    with pytest.raises(PipelineError, match="source 'mine': a/b@0000.*: its card names a file outside of it; give"):
        listed(monkeypatch, source, ["train.parquet"])


def test_evaluation_data_is_gathered_by_the_same_globs_and_with_its_test_files(tmp_path, monkeypatch):
    for path in ("data/test-0.parquet", "data/deep/test-1.parquet", "data/x.json"):
        (tmp_path / "hub" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / path).touch()
    patterns = {
        "data/*.parquet": ["data/test-0.parquet"],
        "data/**/*.parquet": ["data/deep/test-1.parquet", "data/test-0.parquet"],
        "data/**": ["data/deep/test-1.parquet", "data/test-0.parquet", "data/x.json"],
    }
    for pattern, expected in patterns.items():
        data = BenchmarkData(repo="a/b", revision="0" * 40, files=[pattern], licence="MIT")
        assert benchdata.gather("mine", data, tmp_path / "hub", tmp_path / "out") == expected
    with pytest.raises(PipelineError, match="benchmarks.mine: no file .*/test/\\*"):
        data = BenchmarkData(repo="a/b", revision="0" * 40, files=["data/*", "test/*"], licence="MIT")
        benchdata.gather("mine", data, tmp_path / "hub", tmp_path / "out")


def test_a_configuration_whose_files_are_in_deeper_folders_is_present_only_if_they_are(tmp_path):
    readme = "---\nconfigs:\n- config_name: a\n  data_files: data/**\n- config_name: b\n  data_files: gone/**\n---\n"
    (tmp_path / "data" / "x").mkdir(parents=True)
    assert "config_name" in present_configs(readme, tmp_path) and "- config_name: a" in present_configs(
        readme, tmp_path
    )
    (tmp_path / "data" / "x" / "0.parquet").touch()
    assert "config_name: b" not in present_configs(readme, tmp_path)
    assert "config_name: a" in present_configs(readme, tmp_path)
