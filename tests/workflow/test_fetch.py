"""What comes from outside: data sets of a hub, files of a URL, and what is refused or warned of."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.artifacts.record import sha256_file
from pipeline.artifacts.store import read_record
from pipeline.commands.bundle import bundle, unbundle
from pipeline.dag.dag import Dag, Job
from pipeline.data.registry import load_sources
from pipeline.errors import PipelineError
from tests.helpers.config import CONFIG
from tests.helpers.data import SHARED, documents, make, with_source
from tests.helpers.hub import COMMIT, Hub, point_at, serve

ROOT = Path(__file__).parents[2]
CARD = """---
configs:
- config_name: questions
  data_files:
  - split: train
    path: questions/train-*
---
"""


def parquet(rows: list[dict[str, object]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def served():
    lines = [json.dumps({"text": f"line {i}"}) + "\n" for i in range(300)]
    files = {
        "README.md": CARD.encode(),
        "questions/train-00000-of-00001.parquet": parquet(
            [
                {"question": "1 + 1 ?", "answer": "2", "notes": None},
                {"question": "1 + 2 ?", "answer": "3", "notes": None},
            ]
        ),
        "questions/test-00000-of-00001.parquet": parquet([{"question": "held out", "answer": "", "notes": None}]),
        "lines/part-0.json.gz": gzip.compress("".join(lines[:200]).encode()),
        "lines/part-1.jsonl": "".join(lines[200:]).encode(),
    }
    with serve(Hub(files=files)) as running:
        yield running


def run_corpus(tmp_path: Path, served: Hub, **source: object) -> subprocess.CompletedProcess[str]:
    """The corpus stage of a source of the stand-in hub, as its command line."""
    entry = {"kind": "huggingface", "repo": served.repo, "revision": COMMIT} | source
    with_source(tmp_path, **entry)
    command = [sys.executable, "-m", "pipeline.stages.corpus", "--scale", "smoke", "--source", "mine"]
    command += ["--config", str(tmp_path / "grid.yaml"), "--results", str(tmp_path / "results")]
    hidden = {"HF_HUB_OFFLINE", "HF_TOKEN"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "secret-token"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def corpus_folder(tmp_path: Path) -> Path:
    return tmp_path / "results" / "smoke" / "data" / "mine" / "corpus"


def test_a_data_set_is_read_by_configuration_and_split_with_its_columns_joined(tmp_path, served):
    done = run_corpus(tmp_path, served, config="questions", text="{question}\n{answer}{notes}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert documents(corpus_folder(tmp_path)) == ["1 + 1 ?\n2", "1 + 2 ?\n3"]
    record = read_record(corpus_folder(tmp_path))
    assert record.metrics["revision"] == COMMIT and "warnings" not in record.metrics
    assert "secret-token" not in (corpus_folder(tmp_path) / "record.json").read_text() + done.stdout


def test_files_of_a_data_set_are_read_in_order_and_a_broken_download_goes_on(tmp_path, served):
    long = "x" * 200_000
    served.files["lines/part-2.jsonl"] = json.dumps({"text": long}).encode()
    served.cut["lines/part-2.jsonl"] = 150_000
    done = run_corpus(tmp_path, served, files=["lines/*"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert documents(corpus_folder(tmp_path)) == [*(f"line {i}" for i in range(300)), long]
    ranges = [wanted for path, wanted in served.asked if path == "lines/part-2.jsonl"]
    assert ranges[0] is None and ranges[1] > "bytes=1"


def test_an_unpinned_data_set_is_used_with_a_warning_in_the_record(tmp_path, served):
    done = run_corpus(tmp_path, served, files=["lines/*"], revision=None, unconfirmed="the revision")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning: unconfirmed source: the revision" in done.stdout
    metrics = read_record(corpus_folder(tmp_path)).metrics
    assert metrics["warnings"] == ["unconfirmed source: the revision"] and metrics["revision"] == COMMIT


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"files": ["gone/*"]}, "has no file gone/*"),
        ({"config": "questions", "split": "validation"}, "there is no split 'validation'; there are: train"),
        ({"repo": "someone/else"}, "source 'mine': someone/else@"),
        ({"files": ["lines/*"], "sha256": {"part-1.jsonl": "0" * 64}}, "part-1.jsonl: SHA-256 of what came from"),
        (
            {"files": ["lines/*"], "sha256": {"part-9.jsonl": "0" * 64}},
            "'part-9.jsonl' is not one of the source's files",
        ),
        (
            {"files": ["lines/*"], "text": "{title}"},
            "lines/part-0.json.gz, line 1: no column 'title'; mend it, or give the source `on_bad_row: skip`",
        ),
        (
            {"repo": None, "revision": None, "unconfirmed": "which dump it was"},
            "source 'mine': it is not known where its text is published (which dump it was); give its entry",
        ),
    ],
)
def test_what_cannot_be_fetched_is_refused_with_the_reason(tmp_path, served, source, message):
    done = run_corpus(tmp_path, served, **source)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in done.stdout + done.stderr


def test_a_killed_fetch_goes_on_behind_its_last_shard_with_the_same_bytes(tmp_path, served, monkeypatch):
    """In this process, where shards can be made small and a kill can be put between two of them."""
    from pipeline.runner import execute
    from pipeline.stages import corpus

    point_at(served, monkeypatch)
    monkeypatch.setattr(corpus, "SHARD_DOCUMENTS", 80)
    (tmp_path / "whole").mkdir()
    entry = {"kind": "huggingface", "repo": served.repo, "revision": COMMIT, "files": ["lines/*"]}
    dag = with_source(tmp_path, **entry)
    job = Job("corpus", "smoke", source="mine")
    execute(dag, job, corpus.run, tmp_path / "whole")
    whole = tmp_path / "whole" / "smoke" / "data" / "mine" / "corpus"
    real, saved = corpus.write_atomic, []

    def dies_behind_the_third_shard(path, data):
        real(path, data)
        if path.name == corpus.PROGRESS:
            saved.append(json.loads(data)["progress"])
            if len(saved) == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(corpus, "write_atomic", dies_behind_the_third_shard)
    with pytest.raises(KeyboardInterrupt):
        execute(dag, job, corpus.run, tmp_path / "results")
    monkeypatch.setattr(corpus, "write_atomic", real)
    assert {key: saved[-1][key] for key in ("shards", "documents", "read", "file", "row")} == {
        **{"shards": 3, "documents": 240, "read": 240, "file": 1, "row": 40}
    }
    served.asked.clear()
    execute(dag, job, corpus.run, tmp_path / "results")
    assert {path for path, _ in served.asked} <= {"lines/part-1.jsonl"}, (
        "a file that is in whole shards is not fetched again"
    )
    again = corpus_folder(tmp_path)
    assert len(list(again.glob("documents-*"))) == 4
    for path in whole.glob("documents-*"):
        assert sha256_file(path) == sha256_file(again / path.name)
    assert not list((tmp_path / "results").rglob("part-*")), "downloaded files are gone"


def test_the_registry_says_of_the_papers_sources_what_is_not_known():
    datasets = load_sources(CONFIG / "sources.yaml").datasets
    paper = {name: s for name, s in datasets.items() if s.kind == "huggingface" and name != "stack-edu-python"}
    assert len(paper) == 27
    assert sum(source.tokens for source in paper.values()) == 252_525_252_526, "of the launch scripts, to the token"
    for source in paper.values():
        assert source.unconfirmed and source.licence


HUB = {"kind": "huggingface", "repo": "a/b", "revision": COMMIT, "licence": "MIT"}
FILE = {"kind": "file", "model_file": "data/x.model", "eod": "</s>", "licence": "MIT"}


@pytest.mark.parametrize(
    ("kind", "entry", "message"),
    [
        ("datasets", HUB | {"revision": None}, "repo or revision is null, so `unconfirmed` has to say"),
        ("datasets", HUB | {"revision": "main"}, r"revision: .*\(found 'main'\)"),
        ("datasets", HUB | {"files": ["*"], "config": "c"}, "give `files`, or `config` and `split`, not both"),
        ("datasets", HUB | {"text": "no column"}, "text: 'no column' names no column"),
        ("tokenizers", FILE | {"model_file": None}, "give json_file, model_file or both"),
        ("tokenizers", FILE | {"urls": {"y.model": "http://x/y"}}, "urls: 'y.model' is not the name of a file"),
        ("tokenizers", FILE | {"urls": {"x.model": "http://x/y"}}, "sha256: 'x.model' is downloaded, so its digest"),
    ],
)
def test_an_entry_that_would_have_to_be_guessed_at_is_refused(tmp_path, kind, entry, message):
    registry = {"datasets": {}, "tokenizers": {}} | {kind: {"mine": entry}}
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump(registry))
    with pytest.raises(PipelineError, match=rf"sources.yaml:\d+: {kind}.mine.*{message}"):
        load_sources(tmp_path / "sources.yaml")


def test_what_only_tells_people_something_moves_no_fingerprint(tmp_path):
    dag = with_source(tmp_path, path="x.txt", note="one", tokens=5)
    again = with_source(tmp_path, path="x.txt", note="another", unconfirmed="much")
    other = with_source(tmp_path, path="x.txt", text="{text}!")
    (job,) = dag.of("corpus")
    assert dag.fingerprint(job) == again.fingerprint(job) != other.fingerprint(job)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder with the paper's tokenizer is not here")
def test_a_tokenizer_is_downloaded_verified_and_converted(tmp_path):
    folder = SHARED / "tokenizers" / "llm-jp-v3"
    (model,) = folder.glob("*.model")
    (tmp_path / "plays.jsonl").write_text(
        "".join(json.dumps({"text": f"to be 495 or not {i}"}) + "\n" for i in range(200))
    )
    with serve(Hub(plain={model.name: model.read_bytes()})) as served:
        entry = {
            "model_file": str(tmp_path / "data" / model.name),
            "urls": {model.name: f"{served.url}/plain/{model.name}"},
            "sha256": {model.name: load_sources(CONFIG / "sources.yaml").tokenizers["llm-jp-v3"].sha256[model.name]},
            "eod": "</s>",
            "bos": "<s>",
        }
        dag = with_source(tmp_path, entry, path=str(tmp_path / "plays.jsonl"))
        data = make(dag, tmp_path / "results")
    made, given = (json.loads((path / "tokenizer.json").read_text()) for path in (data / "tokenizer", folder))
    (pieces, scores), (given_pieces, given_scores) = (
        zip(*one["model"].pop("vocab"), strict=True) for one in (made, given)
    )
    assert pieces == given_pieces and scores == pytest.approx(given_scores, rel=1e-12)
    del made["post_processor"], given["post_processor"]
    assert made == given
    difference = read_record(data / "mine" / "tokenize").metrics["json_difference"]
    assert difference["documents"] > 5 and difference["documents_differing"] >= 0


def test_snakemake_fetches_a_scale_offline_runs_follow_and_an_unpacked_bundle_is_up_to_date(tmp_path, served):
    """The `fetch` target on a login node, and what a cluster without a network then has to do."""
    copies = {name: tmp_path / name for name in ("login", "cluster")}
    for folder in copies.values():
        for name in ("config", "profiles", "workflow", "pipeline"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(ROOT / "Snakefile", folder / "Snakefile")
    login, cluster = copies["login"], copies["cluster"]
    entry = {"kind": "huggingface", "repo": served.repo, "revision": COMMIT, "files": ["lines/part-1.jsonl"]}
    with_source(login / "config", **entry)
    shutil.rmtree(cluster / "config")
    hidden = {"HF_HUB_OFFLINE", "HF_TOKEN"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "hf")}

    def snakemake(folder: Path, *arguments: str) -> str:
        command = [Path(sys.executable).with_name("snakemake"), "--cores", "1", "--nocolor", *arguments]
        command += ["--config", "scale=smoke"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    snakemake(login, "fetch")
    dag = Dag.load("smoke", login / "config" / "grid.yaml")
    made = {path.relative_to(login / "results").as_posix() for path in (login / "results").rglob("record.json")}
    assert made == {job.record.as_posix() for job in dag.fetches}
    bundle(dag, tmp_path / "smoke.tar", root=login, config=login / "config")
    unbundle(tmp_path / "smoke.tar", cluster)
    assert "Nothing to be done" in snakemake(cluster, "--dry-run", "fetch")
    served.asked.clear()
    snakemake(cluster, "tokenize")
    assert not served.asked, "what follows runs offline"
