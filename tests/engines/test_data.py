"""Corpus, tokenizer and tokenize: generated text, local files, held-out items, token files."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.artifacts.record import sha256_file
from pipeline.dag.dag import Dag
from pipeline.data.sources.facts import VALUES_PER_FACT
from pipeline.engines.megatron.data import merge_indexed
from pipeline.runner import execute
from pipeline.runtime.execution import Execution
from pipeline.stages import corpus, tokenize
from pipeline.tasks import TASKS
from tests.helpers.config import CONFIG
from tests.helpers.data import documents, make, same_tokens


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> tuple[Dag, Path]:
    dag = Dag.load("smoke", CONFIG / "grid.yaml")
    return dag, make(dag, tmp_path_factory.mktemp("results"))


def test_no_held_out_question_is_in_a_training_document(smoke):
    _, data = smoke
    folder = data / "sums-smoke" / "corpus"
    texts = documents(folder)
    test = pq.read_table(folder / "tasks" / "sums" / "test.parquet")["question"].to_pylist()
    assert len(test) == len(set(test)) == 16
    prompts = {TASKS["sums"].prompt(question) for question in test}
    assert not any(text.startswith(prompt) for text in texts for prompt in prompts)
    train = pq.read_table(folder / "tasks" / "sums" / "train.parquet")["question"].to_pylist()
    assert not set(train) & set(test)


def test_every_written_chain_of_thought_is_right(smoke):
    dag, data = smoke
    modulus, direct = dag.datasets["sums-smoke"].modulus, 0
    texts = documents(data / "sums-smoke" / "corpus")
    for text in texts:
        question, _, answer = text.removeprefix("question : ").partition(" answer : ")
        words = question.split()
        total = int(words[0])
        for sign, term in zip(words[1::2], words[2::2], strict=True):
            total = {"+": total + int(term), "-": total - int(term), "*": total * int(term)}[sign] % modulus
        assert TASKS["sums"].extract(answer) == str(total)
        if answer.startswith("####"):
            direct += 1
            continue
        steps = answer.partition(" ####")[0].split(" ; ")
        assert len(steps) == (len(words) - 1) // 2 and steps[-1].endswith(f"= {total}")
    assert direct / len(texts) == pytest.approx(dag.datasets["sums-smoke"].direct_share, abs=0.1)


def test_facts_are_24_bits_with_one_right_choice_of_four(smoke):
    _, data = smoke
    rows = pq.read_table(data / "facts-smoke" / "corpus" / "tasks" / "facts" / "test.parquet").to_pylist()
    for row in rows:
        assert len(row["gold"].split()) == VALUES_PER_FACT
        assert len(set(row["choices"])) == 4 and row["choices"][row["label"]] == row["gold"]


def test_the_tokenizer_knows_every_word_and_prompts_alike_for_verl_and_the_evaluations(smoke):
    from transformers import AutoTokenizer

    _, data = smoke
    fast = AutoTokenizer.from_pretrained(data / "tokenizer")
    for source in ("facts-smoke", "sums-smoke"):
        for text in documents(data / source / "corpus")[:50]:
            ids = fast(text)["input_ids"]
            assert ids[0] == fast.bos_token_id and fast.unk_token_id not in ids
            assert fast.decode(ids, skip_special_tokens=True) == text
    prompt = TASKS["sums"].prompt("1 + 2")
    chat = fast.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
    assert fast(chat, add_special_tokens=False)["input_ids"] == fast(prompt)["input_ids"]


def test_token_files_hold_the_documents_each_ended_and_split(smoke):
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from tokenizers import Tokenizer

    dag, data = smoke
    folder = data / "sums-smoke"
    words = Tokenizer.from_file(str(data / "tokenizer" / "tokenizer.json"))
    written: dict[str, list[list[int]]] = {"train": [], "validation": []}
    for number, text in enumerate(documents(folder / "corpus")):
        split = "validation" if tokenize.is_validation(number, dag.scale.data.validation) else "train"
        written[split].append([*words.encode(text, add_special_tokens=False).ids, words.token_to_id("<|eod|>")])
    assert all(written.values())
    for split, expected in written.items():
        dataset = IndexedDataset(str(folder / "tokenize" / split))
        assert [list(map(int, dataset[i])) for i in range(len(dataset))] == expected


def test_data_stages_give_the_same_bytes_again(smoke, tmp_path):
    dag, data = smoke
    again = make(dag, tmp_path)
    files = [p.relative_to(data) for p in data.rglob("*") if p.is_file() and "record" not in p.name]
    assert files
    for name in files:
        assert sha256_file(data / name) == sha256_file(again / name), name


def test_a_killed_tokenize_continues_with_the_unfinished_shard(smoke, tmp_path, monkeypatch):
    dag, whole = smoke
    monkeypatch.setattr(corpus, "SHARD_DOCUMENTS", 150)
    data = make(dag, tmp_path, ("corpus", "tokenizer"))
    job = next(job for job in dag.of("tokenize") if job.source == "sums-smoke")
    real, done = tokenize.tokenize_shard, []

    def dies_in_the_second(shard, *rest):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(shard.name)
        return real(shard, *rest)

    monkeypatch.setattr(tokenize, "tokenize_shard", dies_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        execute(dag, job, tokenize.run, tmp_path)
    monkeypatch.setattr(tokenize, "tokenize_shard", lambda shard, *rest: done.append(shard.name) or real(shard, *rest))
    execute(dag, job, tokenize.run, tmp_path)
    assert done == [f"documents-{i:05d}.parquet" for i in range(3)]
    same_tokens(data / "sums-smoke" / "tokenize", whole / "sums-smoke" / "tokenize")


def test_several_processes_write_the_same_token_files(smoke, tmp_path, monkeypatch):
    dag, whole = smoke
    monkeypatch.setattr(corpus, "SHARD_DOCUMENTS", 150)
    data = make(dag, tmp_path, ("corpus", "tokenizer"))
    job = next(job for job in dag.of("tokenize") if job.source == "sums-smoke")
    execute(dag, job, tokenize.run, tmp_path, Execution(device="cpu", ranks=2))
    same_tokens(data / "sums-smoke" / "tokenize", whole / "sums-smoke" / "tokenize")


def test_merged_token_files_are_those_megatron_core_would_write(smoke, tmp_path):
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    _, data = smoke
    parts = [
        data / source / "tokenize" / split for source in ("facts-smoke", "sums-smoke") for split in tokenize.SPLITS
    ]
    IndexedDatasetBuilder(str(tmp_path / "none.bin"), DType.optimal_dtype(100)).finalize(str(tmp_path / "none.idx"))
    parts.insert(1, tmp_path / "none")
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), DType.optimal_dtype(100))
    for part in parts:
        builder.add_index(str(part))
    builder.finalize(str(tmp_path / "theirs.idx"))
    documents, tokens = merge_indexed(parts, tmp_path / "ours")
    assert documents == len(builder.sequence_lengths) and tokens == sum(builder.sequence_lengths)
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()
