"""Self-consistency: the estimators against brute force, and samples that do not depend on batches or kills."""

import itertools
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from pipeline.errors import PipelineError
from pipeline.stages import decode
from pipeline.stages.decode import curve, request_seed
from pipeline.tasks import TASKS
from pipeline.tasks.results import pass_at_k
from pipeline.tasks.votes import majority, majority_at


@pytest.fixture(scope="module")
def record(lab):
    return lab.run(decode)


@pytest.mark.parametrize(("samples", "correct"), [(8, 0), (8, 1), (8, 3), (8, 7), (8, 8)])
def test_coverage_equals_all_draws_counted(samples, correct):
    outcomes = [True] * correct + [False] * (samples - correct)
    for n in (1, 2, 4, 8):
        draws = [any(draw) for draw in itertools.combinations(outcomes, n)]
        assert pass_at_k(samples, correct, n) == pytest.approx(sum(draws) / len(draws))


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["1", "2", "2"], "2"),
        (["2", "1", "1", "2"], "2"),  # a tie: the first seen
        ([None, None, None, "3"], "3"),  # what could not be parsed does not vote
        ([None, None], None),
    ],
)
def test_majority(answers, winner):
    assert majority(answers) == winner


def test_majority_at_n_is_the_mean_over_disjoint_groups():
    answers = ["1", "1", "2", "2", "1", "2", None, "2"]
    assert majority_at(1, answers, {"1"}) == 3 / 8
    assert majority_at(2, answers, {"1"}) == 2 / 4  # 1 1 | 2 2 | 1 2 (a tie, 1 was first) | 2
    assert majority_at(4, answers, {"1"}) == 1 / 2
    assert majority_at(8, answers, {"1"}) == 0


def test_curve_averages_over_questions():
    def rows(item, answers):
        return [{"item": item, "gold": "1", "answer": a, "correct": a == "1"} for a in answers]

    points = {row["metric"]: row for row in curve("sums", rows(0, ["1", "1"]) + rows(1, ["2", None]))}
    assert list(points) == ["majority@1", "coverage@1", "majority@2", "coverage@2", "unparsed"]
    assert {name: row["value"] for name, row in points.items()} == dict.fromkeys(list(points)[:4], 0.5) | {
        "unparsed": 0.25
    }
    assert points["majority@2"]["stderr"] == pytest.approx(0.5)  # sample deviation of (1, 0), over sqrt(2)
    assert points["majority@2"]["samples"] == 2


def test_seeds_of_questions_are_far_apart():
    seeds = sorted(request_seed(0, task, item) for task in ("sums", "recall") for item in range(2000))
    assert min(b - a for a, b in itertools.pairwise(seeds)) > 1024


def test_every_sample_is_kept_and_checked(lab, record):
    rows = lab.rows("decode", "samples.parquet")
    assert [(row["item"], row["sample"]) for row in rows] == [(i, s) for i in range(96) for s in range(4)]
    for row in rows:
        assert row["answer"] == TASKS["sums"].extract(row["text"])
        assert row["correct"] == (row["answer"] == row["gold"])
        assert row["tokens"] <= 24
        assert row["finish"] in ("stop", "length")
    assert any(row["correct"] for row in rows)
    assert len({row["text"] for row in rows if row["item"] == 0}) > 1
    assert record.metrics["sampled_tokens"] == sum(row["tokens"] for row in rows)


def test_curve_is_that_of_the_samples(lab, record):
    rows = lab.rows("decode", "samples.parquet")
    results = {row["metric"]: row for row in record.metrics["results"]}
    right = [row["correct"] for row in rows]
    assert results["majority@1"]["value"] == results["coverage@1"]["value"] == pytest.approx(sum(right) / len(right))
    covered = [any(right[i : i + 4]) for i in range(0, len(right), 4)]
    assert results["coverage@4"]["value"] == pytest.approx(sum(covered) / 96)
    assert {row["metric"] for row in lab.rows("decode", "curve.parquet")} == set(results)


def test_samples_do_not_depend_on_what_shares_a_batch(lab, fresh, monkeypatch, record):
    monkeypatch.setattr(decode, "CHUNK", 7)
    assert fresh.run(decode).outputs == record.outputs


def test_killed_run_continues_to_the_same_artifact(lab, fresh, monkeypatch, record):
    job = fresh.job("decode")
    command = [sys.executable, "-m", "pipeline.stages.decode", "--config", str(fresh.config), "--scale", "smoke"]
    command += ["--results", str(fresh.results), "--point", job.point, "--variant", job.variant, "--device", "cpu"]
    state = fresh.results / ".state" / job.folder
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(state.glob("work-*/0-sums-000000.json")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    asked, whole = [], decode.sample
    monkeypatch.setattr(decode, "sample", lambda *args: asked.append(len(args[1])) or whole(*args))
    assert fresh.run(decode).outputs == record.outputs
    assert asked == [32]  # the chunk of 64 questions was kept


def test_a_prompt_without_room_for_the_answer_is_named(lab, reference):
    llm = SimpleNamespace(get_tokenizer=lambda: reference[1], model_config=SimpleNamespace(max_model_len=16))
    question = decode.read_questions(lab.context("decode").items_folder("sums"), lab.dag.scale.decode.tasks[0])[0]
    with pytest.raises(PipelineError, match=r"task 'sums', item 0: \d+ tokens of prompt and decode.max_tokens 24"):
        decode.sample(llm, [question], lab.dag.scale.decode)
