"""Task loss: what vLLM reports equals plain transformers, and which tokens belong to an answer."""

import math
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.errors import PipelineError
from pipeline.stages import taskloss
from pipeline.stages.taskloss import continuation, encode, score, summarise
from pipeline.tasks.items import read_questions


@pytest.fixture(scope="module")
def record(lab):
    return lab.run(taskloss)


def questions(lab):
    asked, context = lab.dag.scale.taskloss.tasks, lab.context("taskloss")
    return [question for task in asked for question in read_questions(context.items_folder(task.task), task)]


def test_loss_equals_transformers(lab, record, reference, token_nll):
    _, tokenizer = reference
    rows = lab.rows("taskloss", "items.parquet")
    assert len(rows) == 48
    for question, row in zip(questions(lab), rows, strict=True):
        # Words and spaces only: here the tokens of the answer are the joint text's after the prompt's.
        begin = len(tokenizer(question.prompt)["input_ids"])
        losses = token_nll(tokenizer(question.prompt + continuation(question))["input_ids"])[begin - 1 :]
        assert (row["task"], row["item"], row["tokens"]) == (question.task, question.item, len(losses))
        assert row["nll_nats"] / row["tokens"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)


def test_units_follow_from_nats(lab, record):
    for question, row in zip(questions(lab), lab.rows("taskloss", "items.parquet"), strict=True):
        bits = row["nll_nats"] / math.log(2)
        assert row["bytes"] == len(continuation(question).encode())
        assert row["bits_token"] * row["tokens"] == pytest.approx(bits)
        assert row["bits_byte"] * row["bytes"] == pytest.approx(bits)


def test_record_holds_means_and_standard_errors(lab, record):
    rows = [row for row in lab.rows("taskloss", "items.parquet") if row["task"] == "sums"]
    results = {(row["task"], row["metric"]): row for row in record.metrics["results"]}
    values = [row["bits_byte"] for row in rows]
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    row = results["sums", "bits_byte"]
    assert (row["value"], row["n"]) == (pytest.approx(mean), 24)
    assert row["stderr"] == pytest.approx(deviation / math.sqrt(24))
    assert record.metrics["straddling_items"] == 0
    assert ("recall", "stored_bits") in results
    assert ("sums", "stored_bits") not in results


def test_a_fact_is_scored_on_its_four_values(lab):
    facts = [question for question in questions(lab) if question.task == "recall"]
    assert all(continuation(question) == " " + question.gold for question in facts)
    assert all(len(question.gold.split()) == 4 for question in facts)


@pytest.mark.parametrize(("nats", "stored"), [(0.0, 24.0), (12 * math.log(2), 12.0), (30 * math.log(2), 0.0)])
def test_stored_bits_are_what_the_model_does_not_need_any_more(nats, stored):
    row = {"nll_nats": nats, "tokens": 4, "bits_token": 0.0, "bits_byte": 0.0}
    assert summarise("recall", [row, row])[-1]["value"] == pytest.approx(stored)


def bpe(merges, byte_level=False):
    """A BPE tokenizer of these merges over single characters, or bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if byte_level else sorted({*"abcd :"})
    pieces = alphabet + ["".join(pair) for pair in merges]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    if byte_level:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_a_token_across_the_boundary_belongs_to_the_answer():
    ids, positions, straddles = encode(bpe([(":", " "), (": ", "a")]), "b:", " ab")
    assert (len(ids), positions, straddles) == (3, [1, 2], True)  # b | ": a" | b


def test_a_token_that_ends_at_the_boundary_does_not():
    ids, positions, straddles = encode(bpe([("b", ":"), (" ", "a")]), "b:", " ab")
    assert (len(ids), positions, straddles) == (3, [1, 2], False)  # "b:" | " a" | b


def test_every_token_of_a_split_character_counts():
    _, positions, straddles = encode(bpe([], byte_level=True), "b:", " é")
    assert (positions, straddles) == ([2, 3, 4], False)  # the space and two bytes


def test_an_item_longer_than_the_context_is_named(lab, reference):
    _, tokenizer = reference
    llm = SimpleNamespace(get_tokenizer=lambda: tokenizer)
    with pytest.raises(PipelineError, match=r"task 'recall', item 0: 8 tokens where taskloss.max_length 8"):
        score(llm, questions(lab)[:1], max_length=8)


def test_resumed_run_equals_undisturbed(lab, fresh, monkeypatch, record):
    whole, calls = taskloss.score, []

    def interrupted(llm, chunk, **more):
        calls.append(chunk[0].task)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(llm, chunk, **more)

    monkeypatch.setattr(taskloss, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fresh.run(taskloss)
    resumed = fresh.run(taskloss)
    assert calls == ["recall", "sums", "sums"]  # what was done was not asked again
    assert resumed.outputs == record.outputs
    assert resumed.metrics == record.metrics
