"""Test questions of benchmarks in training text: found, counted, dropped; and what a new benchmark makes run again."""

import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.artifacts.record import Record, sha256_file
from pipeline.artifacts.store import read_record
from pipeline.commands.bundle import bundle
from pipeline.commands.why import Ledger, accept, explain
from pipeline.dag.dag import Dag, Job
from pipeline.dag.survey import survey
from pipeline.data import contamination, intake
from pipeline.data.contamination import EXACT, PART, Hit, Questions
from pipeline.errors import PipelineError
from pipeline.runner import execute
from pipeline.stages import benchdata, corpus
from tests.helpers import published
from tests.helpers.checkpoints import CPU
from tests.helpers.config import CONFIG, whole_grid
from tests.helpers.data import documents, write_lines
from tests.helpers.repository import copy_repository, planned, snakemake

LONG = "Janet\u2019s ducks lay 16 eggs a day. She eats three for breakfast every morning and bakes muffins for friends."
SHORT = "Which disastrous amphibious landing in 1942 used Canadian troops?"
TESTS = {"sums": [LONG, "What is 2 + 2?"], "trivia": [SHORT, "Who wrote Hamlet?"]}


def found(text: str, tests: dict[str, list[str]] = TESTS, training: list[str] | None = None) -> list[Hit]:
    return Questions(tests, training or []).find([text]).get(0, [])


@pytest.mark.parametrize(
    "text",
    [
        LONG,
        f"Question: {LONG}\nAnswer: 18",
        LONG.upper().replace(" ", " \n\t"),
        LONG.replace("\u2019", "'").replace(".", " ."),
        LONG.replace("\u2019", "").replace(".", "—"),
        LONG.replace(" ", "\u00a0\u2003"),
        LONG.replace("a", "\uff41").replace("16", "\uff11\uff16"),
        "\x7f " + LONG,
    ],
)
def test_a_whole_question_is_found_however_it_is_written(text):
    assert found(text) == [Hit("sums", EXACT, 0)]


def test_a_part_of_13_words_is_found_and_one_of_12_is_not():
    words = LONG.split()
    for start in range(len(words) - 12):
        assert found("It is said: " + " ".join(words[start : start + 13]) + " or so") == [Hit("sums", PART, 0)]
    for start in range(len(words) - 11):
        assert found("It is said: " + " ".join(words[start : start + 12]) + " or so") == []


def test_short_questions_are_found_whole_and_trivial_ones_are_not_looked_for():
    assert found(f"I was asked: {SHORT.lower()} I do not know.") == [Hit("trivia", EXACT, 0)]
    assert found(SHORT.rpartition(" ")[0]) == []
    assert found("What is 2 + 2? Who wrote Hamlet?") == []
    assert Questions(TESTS).counts == {
        "sums": {"questions": 2, "unchecked": 1},
        "trivia": {"questions": 2, "unchecked": 1},
    }


def test_a_text_may_hold_questions_of_several_benchmarks():
    tests = {**TESTS, "changed": [LONG.replace("16", "17"), LONG + " How many?"]}
    hits = [Hit("sums", EXACT, 0), Hit("changed", EXACT, 1), Hit("trivia", EXACT, 0)]
    assert found(f"{LONG} How many? {SHORT}", tests) == hits
    assert sorted(hit.method for hit in found(LONG, tests)) == [PART, EXACT]


def test_phrases_that_many_questions_share_and_lists_of_numbers_are_no_evidence():
    form = "Write a Python function to check whether the given number can be represented as"
    numbers = "Sort this list: " + ", ".join(map(str, range(40)))
    tests = {"code": [*(f"{form} a sum of {name} cubes" for name in map(str, range(11))), numbers]}
    assert found(form + " nothing at all", tests) == []
    assert found(", ".join(map(str, range(40))), tests) == []
    assert found(f"{form} a sum of 7 cubes", tests) == [Hit("code", EXACT, 7)]
    assert len(found(form + " nothing at all", {"code": tests["code"][1:]})) == 1


def test_training_questions_are_not_taken_for_test_questions():
    like = LONG.replace("16", "17").replace("friends", "family")
    assert found(like) == [Hit("sums", PART, 0)]
    assert found(like, training=[like]) == []
    assert found(LONG, training=[like]) == [Hit("sums", EXACT, 0)]
    assert found(f"{SHORT} Dieppe", training=[f"{SHORT} Why?"]) == []
    assert found(LONG, training=[LONG]) == [Hit("sums", EXACT, 0)], "train and test may be one file"


def test_no_place_in_a_long_text_hides_a_question():
    rng = random.Random(0)
    words = [f"word{i}" for i in range(500)]
    questions = Questions(TESTS)
    for size in (contamination.PIECE - 60, contamination.PIECE, 3 * contamination.PIECE + 7):
        filler = " ".join(rng.choices(words, k=size // 7))
        for text in (filler + " " + LONG, filler + " " + LONG + " " + filler, LONG + " " * size + filler):
            found = questions.find([filler, text, SHORT, filler])
            assert found == {1: [Hit("sums", EXACT, 0)], 2: [Hit("trivia", EXACT, 0)]}
    half = LONG.split()[:12]
    assert questions.find([" ".join(half), " ".join(LONG.split()[12:])]) == {}, "documents are apart"
    assert questions.find(["x" * 300_000 + " " + LONG + "y" * 300_000]) == {0: [Hit("sums", PART, 0)]}


def test_equal_hashes_drop_nothing(monkeypatch):
    monkeypatch.setattr(contamination, "BASE", 1)  # words of the same letters in another order are alike then
    contamination._powers.cache_clear()
    try:
        swapped = " ".join(reversed(LONG.split()))
        assert found(swapped) == [] and found(LONG) == [Hit("sums", EXACT, 0)]
    finally:
        contamination._powers.cache_clear()


# ---------------------------------------------------------------------------------------------------- the stage


def configure(folder: Path, tasks: list[str], planted: dict[str, list[str]] | None = None, **source: object) -> Dag:
    """Scale smoke with local notes in its blend, whose task loss asks the published `tasks` from a made-up hub."""
    config = folder / "config"
    if not (folder / "hub").exists():
        published.made_up(folder / "originals")
        published.layout.WORKED_EXAMPLES.update(triviaqa=8, hellaswag=8)
        published.layout.lay_out(folder / "originals", folder / "hub")
    grid = whole_grid()
    sources = yaml.safe_load((CONFIG.parent / "config/sources.yaml").read_text())
    for data in sources["benchmarks"].values():
        data["path"] = str(folder / "hub" / data["repo"])
    for name, texts in (planted or {}).items():
        write_lines(folder / f"{name}.jsonl", texts)
    files = {"kind": "local", "path": str(folder / "*.jsonl"), "licence": "CC0-1.0", **source}
    sources["datasets"]["notes"] = files
    smoke = grid["scales"]["smoke"]
    smoke["data"]["sources"] = {"facts-smoke": 0.4, "sums-smoke": 0.4, "notes": 0.2}
    smoke["points"] = [{"hidden": 32, "experts": 4, "topk": 2}]
    smoke["taskloss"] = {"tasks": [{"task": task, "limit": 2} for task in tasks], "dtype": "fp32"} if tasks else None
    smoke |= {"benchmark": None, "decode": None, "grpo": None}
    config.mkdir(exist_ok=True)
    (config / "grid.yaml").write_text(yaml.safe_dump(grid))
    (config / "sources.yaml").write_text(yaml.safe_dump(sources))
    return Dag.load("smoke", config / "grid.yaml")


@pytest.fixture
def hub(tmp_path):
    shots = dict(published.layout.WORKED_EXAMPLES)
    yield tmp_path
    published.layout.WORKED_EXAMPLES.update(shots)


QUESTION, TRAINED = published.sum_row(107)["question"], published.sum_row(7)["question"]
PROGRAM = "Write a function to add 11 to a number."
NOTES = ["a plain note", f"Q: {QUESTION.upper()} A: 217", "", f"Q: {TRAINED} A: 17", "another plain note", PROGRAM]
NOTES_JOB = Job("corpus", "smoke", source="notes")


def made(dag: Dag, results: Path) -> Record:
    for job in dag.of("benchdata"):
        execute(dag, job, benchdata.run, results, CPU)
    return execute(dag, NOTES_JOB, corpus.run, results, CPU)


def test_documents_with_a_test_question_are_dropped_counted_and_named(hub):
    dag = configure(hub, ["gsm8k", "mbpp"], {"notes": NOTES})
    assert set(dag.inputs(NOTES_JOB)) == {"benchdata/gsm8k", "benchdata/mbpp"}
    assert dag.inputs(Job("corpus", "smoke", source="sums-smoke")) == {}
    record = made(dag, hub / "results")
    assert documents(hub / "results" / NOTES_JOB.folder) == ["a plain note", NOTES[3], "another plain note"]
    screening = record.screening
    assert "Brown et al. 2020" in screening["method"] and "13-gram" in screening["method"]
    assert (screening["policy"], screening["documents"], screening["of"]) == ("drop", 2, 5)
    assert screening["benchmarks"]["gsm8k"] == {"questions": 20, "unchecked": 0, "exact": 1, "13-gram": 0}
    assert screening["benchmarks"]["mbpp"]["exact"] == 1
    assert screening["examples"][0] == {
        **{"document": 1, "file": str(hub / "notes.jsonl"), "row": 1},
        **{"benchmark": "gsm8k", "method": "exact", "item": 7, "question": QUESTION},
    }
    assert record.metrics["documents_contaminated"] == 2
    assert {entry.name for entry in record.inputs} == {"benchdata/gsm8k", "benchdata/mbpp"}


def test_a_source_may_keep_such_documents_or_stop(hub):
    dag = configure(hub, ["gsm8k"], {"notes": NOTES}, contamination="keep")
    record = made(dag, hub / "results")
    assert documents(hub / "results" / NOTES_JOB.folder) == [text for text in NOTES if text]
    assert (record.screening["policy"], record.screening["documents"]) == ("keep", 1)
    dag = configure(hub, ["gsm8k"], contamination="stop")
    with pytest.raises(
        PipelineError, match=r"document 1 \(row 1 of .*notes.jsonl\) holds test question 7 of gsm8k .*Anna"
    ):
        made(dag, hub / "results")


def test_a_killed_search_goes_on_with_the_same_bytes_and_counts(hub, monkeypatch):
    monkeypatch.setattr(corpus, "SHARD_DOCUMENTS", 10)
    monkeypatch.setattr(intake, "SEARCHED", 1000)
    texts = [published.sum_row(100 + i % 20)["question"] if i % 3 == 0 else f"note {i}" for i in range(60)]
    dag = configure(hub, ["gsm8k"], {"notes": texts})
    whole = made(dag, hub / "whole")
    assert whole.screening["documents"] == 20 and whole.metrics["documents"] == 40
    real = corpus.write_atomic

    def dies(path, data):
        real(path, data)
        if path.name == corpus.PROGRESS and '"shards": 2' in data:
            raise KeyboardInterrupt

    monkeypatch.setattr(corpus, "write_atomic", dies)
    with pytest.raises(KeyboardInterrupt):
        made(dag, hub / "results")
    monkeypatch.setattr(corpus, "write_atomic", real)
    shutil.copytree(hub / "results", hub / "other")
    again = made(dag, hub / "results")
    assert (again.content, again.screening) == (whole.content, whole.screening)
    # Unfinished work that was searched for other questions is not gone on with.
    now = configure(hub, ["gsm8k", "mbpp"])
    assert now.fingerprint(NOTES_JOB) == dag.fingerprint(NOTES_JOB)
    begun = []
    monkeypatch.setattr(corpus, "Row", lambda *row: begun.append(row[1]) or intake.Row(*row))
    made(now, hub / "other")
    assert begun[0] == 0


# ---------------------------------------------------------------------------------------------------- the DAG


def finished(dag: Dag, results: Path) -> None:
    """Artifacts of all jobs: real data, and empty ones downstream."""
    for job in dag.jobs:
        real = {"benchdata": benchdata.run, "corpus": corpus.run}
        execute(dag, job, real.get(job.stage, lambda ctx: {}), results, CPU)


def test_a_new_benchmark_searches_corpora_again_and_changes_nothing_else(hub):
    results = hub / "results"
    before = configure(hub, ["gsm8k"], {"notes": NOTES[:3] + NOTES[4:5]})
    finished(before, results)
    assert survey(before, results).unsettled == set()
    content = read_record(results / NOTES_JOB.folder).content
    now = configure(hub, ["gsm8k", "mbpp"])
    assert now.fingerprint(NOTES_JOB) == before.fingerprint(NOTES_JOB)
    looked = survey(now, results)
    pretrain = now.of("pretrain")[0]
    assert NOTES_JOB in looked.stale and Job("corpus", "smoke", source="sums-smoke") not in looked.unsettled
    assert pretrain in looked.unsettled - looked.stale
    ledger = Ledger(now, results)
    assert "  input benchdata/mbpp: (absent) -> there" in explain(ledger, NOTES_JOB)
    assert "  input benchdata/mbpp: (absent) -> there (of corpus notes)" in explain(ledger, pretrain)
    with pytest.raises(PipelineError, match=r"mbpp/benchdata/record.json: not there yet"):
        accept(ledger, [NOTES_JOB], "no code in it")
    with pytest.raises(PipelineError, match="notes/corpus/record.json: made with other settings or inputs"):
        bundle(now, hub / "b.tar", ["corpus"], root=hub, config=hub / "config")
    record = made(now, results)
    assert record.content == content and set(record.screening["benchmarks"]) == {"gsm8k", "mbpp"}
    assert {job.stage for job in survey(now, results).unsettled} <= {
        "preflight",
        "taskloss",
        "table",
        "claims",
        "figures",
        "report",
    }
    # A benchmark that goes is a reason too, and may be accepted.
    gone = configure(hub, ["mbpp"])
    ledger = Ledger(gone, results)
    assert "  input benchdata/gsm8k: there -> (absent)" in explain(ledger, NOTES_JOB)
    ((job, changes),) = accept(ledger, [NOTES_JOB], "searched for more")
    assert (job, changes) == (NOTES_JOB, ["input benchdata/gsm8k: there -> (absent)"])
    assert NOTES_JOB not in survey(gone, results).unsettled


def test_a_document_that_goes_is_a_reason_to_train_again(hub):
    results = hub / "results"
    finished(configure(hub, ["gsm8k"], {"notes": NOTES}), results)
    now = configure(hub, ["gsm8k", "mbpp"])
    assert made(now, results).screening["documents"] == 2
    assert Job("tokenize", "smoke", source="notes") in survey(now, results).stale


def test_a_benchmark_that_came_out_otherwise_is_a_reason_to_search_again(hub):
    results = hub / "results"
    finished(configure(hub, ["gsm8k"], {"notes": NOTES}), results)
    (test,) = (hub / "hub").glob("openai/gsm8k/main/test-*.parquet")
    rows = pq.read_table(test).to_pylist()
    pq.write_table(pa.Table.from_pylist([{**row, "question": f"Now: {row['question']}"} for row in rows]), test)
    (results / "smoke/data/gsm8k/benchdata/record.json").unlink()
    (results / "smoke/data/gsm8k/benchdata/.record.json").unlink()
    dag = configure(hub, ["gsm8k"])
    for job in dag.of("benchdata"):
        execute(dag, job, benchdata.run, results, CPU)
    assert NOTES_JOB in survey(dag, results).stale
    assert any("content of input benchdata/gsm8k" in line for line in explain(Ledger(dag, results), NOTES_JOB))


def test_corpora_that_nobody_reads_are_left_out_with_what_they_would_be_searched_for(hub):
    dag = configure(hub, ["gsm8k"])
    grid = yaml.safe_load((hub / "config/grid.yaml").read_text())
    grid["scales"]["smoke"] |= {"adopt": {"repo": "some/{name}", "revision": "main"}}
    (hub / "config/grid.yaml").write_text(yaml.safe_dump(grid))
    adopted = Dag.load("smoke", hub / "config/grid.yaml")
    assert {job.source for job in adopted.of("corpus")} <= {"facts-smoke", "sums-smoke", "notes"}
    read = {up for job in adopted.jobs for up in adopted.inputs(job).values()}
    assert all(job in read for job in (*adopted.of("corpus"), *adopted.of("benchdata")))
    assert [job.stage for job in dag.fetches].index("benchdata") < [job.stage for job in dag.fetches].index("corpus")


def test_a_record_without_a_search_reads_as_records_before_did(hub):
    dag = configure(hub, [], {"notes": NOTES})
    record = execute(dag, NOTES_JOB, corpus.run, hub / "results", CPU)
    assert record.screening == {} and "screening" not in (hub / "results" / NOTES_JOB.record).read_text()
    assert read_record(hub / "results" / NOTES_JOB.folder) == record.model_copy(
        update={"digest": read_record(hub / "results" / NOTES_JOB.folder).digest}
    )


def test_through_snakemake_a_planted_question_is_dropped_and_a_new_benchmark_searched_for(hub):
    copy_repository(hub)
    dag = configure(hub, ["gsm8k"], {"notes": NOTES})
    done = snakemake(hub, "corpus")
    assert done.returncode == 0, done.stdout[-5000:]
    record = read_record(hub / "results" / NOTES_JOB.folder)
    assert record.screening["documents"] == record.screening["benchmarks"]["gsm8k"]["exact"] == 1
    assert record.screening["examples"][0]["document"] == 1
    finished(dag, hub / "results")
    (hub / "results/smoke/report.html").touch()
    assert planned(hub) == set()
    configure(hub, ["gsm8k", "mbpp"])
    assert {f"results/{NOTES_JOB.record}", "results/smoke/data/mbpp/benchdata/record.json"} <= planned(hub)
    before = sha256_file(hub / "results" / NOTES_JOB.record)
    assert snakemake(hub, "corpus").returncode == 0
    assert sha256_file(hub / "results" / NOTES_JOB.record) != before
    assert set(read_record(hub / "results" / NOTES_JOB.folder).screening["benchmarks"]) == {"gsm8k", "mbpp"}
