"""lm-eval on vLLM: prompts, texts and likelihoods as in plain transformers, and errors that name what is wrong."""

import json
import shutil
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.config.evaluations import EvalTask
from pipeline.engines import vllm as engine
from pipeline.errors import PipelineError
from pipeline.stages import benchmark
from pipeline.tasks import OWN, TASKS, items
from pipeline.tasks.items import read_questions
from pipeline.tasks.stock import OWN_TASKS, task_manager
from tests.helpers.checkpoints import Lab


@pytest.fixture(scope="module")
def record(lab):
    return lab.run(benchmark)


@pytest.fixture(scope="module")
def stock():
    """lm-eval's own index, which takes ten CPU seconds."""
    return task_manager(["arc_easy"])


def rows(lab, task, name=None):
    logged = lab.rows("benchmark", "samples.parquet")
    return [row for row in logged if row["task"] == task and name in (None, row["filter"])]


def questions(lab, task):
    asked = next(asked for asked in lab.dag.scale.benchmark.tasks if asked.task == task)
    return read_questions(lab.context("benchmark").items_folder(asked.task), asked)


def test_a_folder_with_a_long_path_is_no_hindrance(lab, tmp_path):
    """`datasets` makes the name of a lock file of its cache's whole path."""
    results = tmp_path / ("長" * 60) / ("い" * 60)
    for job in lab.dag.of("corpus"):
        shutil.copytree(lab.results / job.folder, results / job.folder)
    far = Lab(lab.config, results, lab.dag)
    (task,) = benchmark.load(task_manager(["sums"]), far.context("benchmark"), EvalTask(task="sums"))
    assert len(task.test_docs()) == len(questions(lab, "sums"))


@pytest.mark.parametrize("task", OWN)
def test_lm_eval_asks_what_the_task_defines(lab, record, task):
    asked = {row["item"]: row["prompt"] for row in rows(lab, task)}
    assert asked == {question.item: question.prompt for question in questions(lab, task)}


@pytest.mark.parametrize(("task", "name"), [("recall", "remove_whitespace"), ("sums", "strict-match")])
def test_greedy_texts_and_scores_equal_transformers(lab, record, reference, task, name):
    model, tokenizer = reference
    config = yaml.safe_load((OWN_TASKS / f"{task}.yaml").read_text())["generation_kwargs"]
    for question, row in zip(questions(lab, task), rows(lab, task, name), strict=True):
        ids = tokenizer(question.prompt, return_tensors="pt")["input_ids"]
        out = model.generate(ids, do_sample=False, max_new_tokens=config["max_gen_toks"])[0, ids.shape[1] :]
        text = " " + tokenizer.decode(out, skip_special_tokens=True)
        for stop in config["until"]:
            text = text.partition(stop)[0]
        assert row["response"].split() == text.split()
        assert row["exact_match"] == (TASKS[task].extract(text) == question.gold)


def test_choices_are_scored_as_transformers_does(lab, record, reference, token_nll):
    _, tokenizer = reference
    folder = lab.context("benchmark").items_folder("recall_choice")
    table = pq.read_table(folder / "test.parquet").to_pylist()
    for question, row in zip(questions(lab, "recall_choice"), rows(lab, "recall_choice"), strict=True):
        item = table[row["item"]]
        begin = len(tokenizer(question.prompt)["input_ids"])
        log_likelihoods = [
            -sum(token_nll(tokenizer(f"{question.prompt} {choice}")["input_ids"])[begin - 1 :])
            for choice in item["choices"]
        ]
        assert [score for score, _ in json.loads(row["response"])] == pytest.approx(log_likelihoods, abs=1e-4)
        assert row["acc"] == (log_likelihoods.index(max(log_likelihoods)) == item["label"])


def test_results_carry_lm_evals_metric_names(lab, record):
    results = {(row["task"], row["metric"]): row for row in record.metrics["results"]}
    assert set(results) == {
        ("recall", "exact_match,remove_whitespace"),
        ("recall_choice", "acc"),
        ("recall_choice", "acc_norm"),
        ("sums", "exact_match,strict-match"),
        ("sums", "exact_match,flexible-extract"),
    }
    scores = [row["exact_match"] for row in rows(lab, "sums", "flexible-extract")]
    row = results["sums", "exact_match,flexible-extract"]
    assert (row["value"], row["n"]) == (pytest.approx(sum(scores) / 96), 96)
    assert 0 < sum(scores) < 96  # the checkpoint is good enough for these tests to tell right from wrong
    assert row["stderr"] > 0
    assert record.metrics["truncated"] == 0


def test_resumed_run_asks_only_what_is_missing(lab, fresh, monkeypatch, record):
    whole, asked = benchmark.evaluate, []

    def interrupted(lm, manager, task_objects, task, seed):
        asked.append(task.task)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return whole(lm, manager, task_objects, task, seed)

    monkeypatch.setattr(benchmark, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fresh.run(benchmark)
    assert fresh.run(benchmark).outputs == record.outputs
    assert asked == ["recall", "recall_choice", "recall_choice", "sums"]


@pytest.mark.parametrize("last", [1, 4])
def test_a_run_killed_within_a_task_asks_the_requests_that_have_no_answer(lab, fresh, monkeypatch, record, last):
    """24 requests of recall and 64 of recall_choice (16 items, four choices), eight at a time."""
    monkeypatch.setattr(benchmark, "CHUNK", 8)
    whole, written = items.write_atomic, []

    def killed(path, text):
        whole(path, text)
        written.append(path.name)
        if len(written) == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(items, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        fresh.run(benchmark)
    assert fresh.run(benchmark).outputs == record.outputs, "chunks of other sizes give the same answers too"
    names = [name for name in written if name.startswith("0-recall")]
    assert names == [f"0-recall-generate_until-{start:06d}.json" for start in (0, 8, 16)], "none is asked twice"
    assert len(written) == 3 + 8 + 12


def test_prompts_that_lm_eval_cuts_are_counted(reference):
    lm = SimpleNamespace(tok_encode=lambda text: reference[1](text)["input_ids"], max_length=8, max_gen_toks=4)
    samples = [
        {"doc_id": 0, "arguments": [("n1 c1 :", {"max_gen_toks": 4})]},  # 4 tokens and 4: fits
        {"doc_id": 0, "arguments": [("n1 c1 :", {"max_gen_toks": 4})]},  # the same request, another filter
        {"doc_id": 1, "arguments": [("n1 c1 :", {"max_gen_toks": 5})]},
        {"doc_id": 2, "arguments": [("n1 c1 :", " v1 v2 v3"), ("n1 c1 :", " v1 v2 v3 v4")]},
    ]
    assert benchmark.truncated(lm, samples) == 2


def test_an_unknown_task_is_met_with_the_nearest_names(lab, stock):
    with pytest.raises(PipelineError, match="no task 'gsm9k'; near it: gsm8k"):
        benchmark.load(stock, lab.context("benchmark"), EvalTask(task="gsm9k"))


def test_a_group_beside_one_of_its_tasks_is_refused_if_both_ask_it_in_the_same_way():
    asked = [EvalTask(task="arithmetic", shots=2), EvalTask(task="arithmetic_1dc", shots=2)]
    group, member = ([SimpleNamespace(task_name=name) for name in names] for names in (["1da", "1dc"], ["1dc"]))
    with pytest.raises(PipelineError, match="'arithmetic' and 'arithmetic_1dc' both ask '1dc' in the same way"):
        benchmark.refuse_same_rows(asked, [group, member])
    benchmark.refuse_same_rows([asked[0], asked[1].model_copy(update={"shots": 0})], [group, member])


def test_a_stock_task_without_its_data_is_one_clear_error(lab, stock):
    with pytest.raises(PipelineError, match=r"the data of 'arc_easy' is not on this machine: .*allenai/ai2_arc"):
        benchmark.load(stock, lab.context("benchmark"), EvalTask(task="arc_easy", shots=4))


def test_truncated_weights_are_named_before_an_engine_starts(lab, tmp_path):
    whole = (lab.checkpoint / "model.safetensors").read_bytes()
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(whole[: len(whole) // 2])
    with (
        pytest.raises(PipelineError, match=f"{broken}: truncated or damaged .*; `python -m pipeline verify"),
        engine.serving(pytest.fail, tmp_path, {}),
    ):
        pass


def test_a_setting_vllm_refuses_is_one_clear_error(lab):
    from vllm import LLM

    settings = engine.options("fp32", 4096, 0, lab.context("decode").execution)
    with (
        pytest.raises(PipelineError, match=f"{lab.checkpoint}: vLLM refuses to serve it: (?s:.*)max_model_len"),
        engine.serving(LLM, lab.checkpoint, settings),
    ):
        pass
