"""Corpora of existing files: formats, faults, kills, and memory."""

import gzip
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts.record import sha256_file
from pipeline.artifacts.store import read_record
from pipeline.dag.dag import Dag
from pipeline.data import sourcefiles
from pipeline.errors import PipelineError
from pipeline.stages import corpus, tokenize
from tests.helpers.data import SHARED, documents, make, same_tokens, with_source, write_lines
from tests.helpers.repository import ROOT
from tests.unit.test_config import grid_file


def test_local_text_json_lines_and_parquet_are_read_and_empty_documents_dropped(tmp_path):
    (tmp_path / "a.txt").write_text("one whole file")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in ("second", "", "third"))
    packed = pa.CompressedOutputStream(str(tmp_path / "c.json.zst"), "zstd")
    packed.write(b'{"text": "fourth"}\n{"text": ""}\n')
    packed.close()
    dag = with_source(tmp_path, path=str(tmp_path / "*[t,z]"))
    data = make(dag, tmp_path / "results", ("corpus",))
    assert documents(data / "mine" / "corpus") == ["one whole file", "second", "third", "fourth"]
    assert read_record(data / "mine" / "corpus").metrics["documents_empty"] == 2


def test_columns_of_parquet_rows_are_joined_by_a_template(tmp_path):
    rows = [
        {"q": "why", "a": [{"by": "x", "text": "so"}], "other": 1},
        {"q": None, "a": [{"by": "x", "text": "!"}], "other": 2},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    dag = with_source(tmp_path, path=str(tmp_path / "x.parquet"), text="Q: {q}\nA: {a[0][text]}")
    data = make(dag, tmp_path / "results", ("corpus",))
    assert documents(data / "mine" / "corpus") == ["Q: why\nA: so", "Q: \nA: !"]


def test_a_document_that_is_too_long_is_cut_at_lines_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.data.documents.DOCUMENT_CHARACTERS", 100)
    lines = [f"line {i} of a long text" for i in range(40)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    write_lines(tmp_path / "b.jsonl", ["short", "x" * 250, "y" * 100])
    dag = with_source(tmp_path, path=str(tmp_path / "[ab].*"))
    data = make(dag, tmp_path / "results", ("corpus",))
    found = documents(data / "mine" / "corpus")
    assert max(map(len, found)) <= 100 and found[-5:] == ["short", "x" * 100, "x" * 100, "x" * 50, "y" * 100]
    assert "".join(found[:-5]) == "\n".join(lines) and all(text.endswith("\n") for text in found[:-6])
    assert read_record(data / "mine" / "corpus").metrics["documents_cut"] == 1


def test_a_killed_corpus_stage_goes_on_behind_its_last_whole_shard_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "SHARD_DOCUMENTS", 30)
    for name in "abc":
        write_lines(tmp_path / f"{name}.jsonl", [f"{name} {i}" * (i % 3) for i in range(70)])
    dag = with_source(tmp_path, path=str(tmp_path / "?.jsonl"))
    whole = make(dag, tmp_path / "whole", ("corpus",)) / "mine" / "corpus"
    real, read = sourcefiles.read_file, []

    def dies_in_the_third(path, source):
        for number, text in enumerate(real(path, source)):
            if path.name == "c.jsonl" and number == 20:
                raise KeyboardInterrupt
            yield text

    monkeypatch.setattr(sourcefiles, "read_file", dies_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        make(dag, tmp_path / "results", ("corpus",))
    monkeypatch.setattr(sourcefiles, "read_file", lambda path, source: read.append(path.name) or real(path, source))
    again = make(dag, tmp_path / "results", ("corpus",)) / "mine" / "corpus"
    assert read == ["b.jsonl", "c.jsonl"], "the first file is in whole shards"
    names = [path.name for path in sorted(whole.glob("documents-*"))]
    assert len(names) == 5 and names == [path.name for path in sorted(again.glob("documents-*"))]
    assert all(sha256_file(whole / name) == sha256_file(again / name) for name in names)
    assert read_record(whole).metrics == read_record(again).metrics


def test_a_corpus_stage_starts_anew_when_its_files_changed_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "SHARD_DOCUMENTS", 10)
    write_lines(tmp_path / "a.jsonl", map(str, range(25)))
    dag = with_source(tmp_path, path=str(tmp_path / "a.jsonl"))
    real = corpus.link
    monkeypatch.setattr(corpus, "link", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        make(dag, tmp_path / "results", ("corpus",))
    monkeypatch.setattr(corpus, "link", real)
    write_lines(tmp_path / "a.jsonl", map(str, range(100, 125)))
    data = make(dag, tmp_path / "results", ("corpus",))
    assert documents(data / "mine" / "corpus") == [str(i) for i in range(100, 125)]


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        (None, "", {}, r"x.txt: no such file; correct `path`"),
        ("x.jsonl", '{"text": ""}', {}, "source 'mine': the corpus is empty"),
        ("x.parquet", "not parquet", {}, r"x.parquet: cannot be read"),
        ("x.txt", "changed", {"sha256": {"x.txt": "0" * 64}}, r"x.txt: its SHA-256 is not the one"),
    ],
)
def test_bad_input_files_are_named_with_the_way_out(tmp_path, name, content, options, message):
    if name:
        (tmp_path / name).write_text(content)
    dag = with_source(tmp_path, path=str(tmp_path / (name or "x.txt")), **options)
    with pytest.raises(PipelineError, match=message):
        make(dag, tmp_path / "results", ("corpus",))


def test_a_missing_tokenizer_file_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    dag = with_source(tmp_path, {"json_file": "gone/tokenizer.json", "eod": "</s>"}, path=str(tmp_path / "a.txt"))
    with pytest.raises(PipelineError, match=r"gone/tokenizer.json: no such tokenizer file"):
        make(dag, tmp_path / "results", ("tokenizer",))


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    path = grid_file(tmp_path, model__vocab_size=64)
    with pytest.raises(PipelineError, match="more than model.vocab_size 64"):
        make(Dag.load("smoke", path), tmp_path / "results", ("corpus", "tokenizer"))


def stage_command(stage: str, folder: Path) -> list[str]:
    command = [
        sys.executable,
        "-m",
        f"pipeline.stages.{stage}",
        "--config",
        str(folder / "grid.yaml"),
        "--scale",
        "smoke",
    ]
    source = [] if stage == "tokenizer" else ["--source", "mine"]
    return [*command, "--results", str(folder / "results"), *source]


def words_of(megabytes: float) -> Iterator[str]:
    """One document of 1.5 MB, and documents of about a kilobyte."""
    words = " ".join(f"word{i}" for i in range(150))
    yield " ".join([words] * (1_500_000 // len(words)))
    yield from (f"number{i % 97} {words}" for i in range(int((megabytes - 1.5) * 1e6 / len(words))))


def memory_of(folder: Path, megabytes: float) -> dict[str, float]:
    """Peak memory in MiB of each data stage on a source of that size."""
    folder.mkdir()
    write_lines(folder / "words.jsonl", words_of(megabytes))
    with_source(folder, path=str(folder / "words.jsonl"))
    for stage in ("corpus", "tokenizer", "tokenize"):
        # by a shell, because a process starts with the peak memory of the one that started it
        command = ["sh", "-c", shlex.join(stage_command(stage, folder)) + "; exit $?"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    data = folder / "results" / "smoke" / "data"
    return {stage: read_record(data / "mine" / stage).peak_rss_mb for stage in ("corpus", "tokenize")}


@pytest.mark.parametrize(
    ("small", "large"), [(4, 24), pytest.param(20, 200, marks=pytest.mark.slow)], ids=["24 MB", "200 MB"]
)
def test_memory_does_not_grow_with_the_corpus(tmp_path, small, large):
    before, after = memory_of(tmp_path / "small", small), memory_of(tmp_path / "large", large)
    assert all(after[stage] - before[stage] < 50 for stage in before), (before, after)


def test_a_tokenize_stage_that_is_killed_outright_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "SHARD_DOCUMENTS", 500)
    write_lines(tmp_path / "words.jsonl", words_of(4))
    dag = with_source(tmp_path, path=str(tmp_path / "words.jsonl"))
    make(dag, tmp_path / "results", ("corpus", "tokenizer"))
    shutil.copytree(tmp_path / "results", tmp_path / "whole")
    whole = make(dag, tmp_path / "whole") / "mine" / "tokenize"
    killed = tmp_path / "results" / "smoke" / "data" / "mine" / "tokenize"
    state = tmp_path / "results" / ".state" / "smoke" / "data" / "mine" / "tokenize"
    process = subprocess.Popen(stage_command("tokenize", tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(state.glob("work-*/*/done")):
        time.sleep(0.001)
    process.kill()
    process.wait()
    left = len(list(state.glob("work-*/*/done")))
    done = subprocess.run(stage_command("tokenize", tmp_path), cwd=ROOT, check=True, capture_output=True, text=True)
    assert f"continuing: {left} of 5 shards are finished" in done.stdout
    same_tokens(killed, whole)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder with the paper's tokenizer is not here")
def test_the_papers_sentencepiece_tokenizer_is_used_for_the_corpus(tmp_path):
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from sentencepiece import SentencePieceProcessor

    folder = SHARED / "tokenizers" / "llm-jp-v3"
    (model,) = folder.glob("*.model")
    entry = {"json_file": str(folder / "tokenizer.json"), "model_file": str(model), "eod": "</s>", "bos": "<s>"}
    text = (SHARED / "tinyshakespeare" / "input.txt").read_text()[:200_000]
    lines = [json.dumps({"text": part}) for part in text.split("\n\n")]
    (tmp_path / "plays.jsonl").write_text(os.linesep.join(lines))
    dag = with_source(tmp_path, entry, path=str(tmp_path / "plays.jsonl"))
    data = make(dag, tmp_path / "results")
    pieces = SentencePieceProcessor(model_file=str(model))
    dataset = IndexedDataset(str(data / "mine" / "tokenize" / "train"))
    first = next(i for i in range(len(lines)) if not tokenize.is_validation(i, 0.1))
    assert list(map(int, dataset[0])) == [*pieces.encode(json.loads(lines[first])["text"]), pieces.piece_to_id("</s>")]
