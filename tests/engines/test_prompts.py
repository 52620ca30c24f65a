"""What each stage really sends its engine: token ids that begin with BOS, or not, as its `add_bos` says.

Stages run as they are, up to the engine, which is a stand-in that keeps what it was sent.
"""

import importlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipeline.artifacts.progress import Progress
from pipeline.config.evaluations import EvalTask, LossTask
from pipeline.config.recipes import Grpo
from pipeline.engines.verl import trainer
from pipeline.errors import PipelineError
from pipeline.runtime.execution import Execution
from pipeline.stages import benchmark, decode, taskloss
from pipeline.stages.grpo import prompt_rows
from pipeline.tasks.prompts import prompt_ids

BOS = "<s>"
KINDS = ("adds", "silent", "none")  # adds BOS by itself; has one and does not; has none
BEGINS = {("adds", None), ("adds", True), ("silent", True)}  # (kind, add_bos) whose prompts begin with BOS
CASES = [(kind, add_bos) for kind in KINDS for add_bos in (None, True, False) if (kind, add_bos) != ("none", True)]


def save_tokenizer(folder: Path, words: set[str], kind: str) -> None:
    """A tokenizer of whole words of one of `KINDS`."""
    vocabulary = {word: i for i, word in enumerate(["</s>", BOS, *sorted(words - {"</s>", BOS})])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if kind == "adds":
        inner.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    bos = {} if kind == "none" else {"bos_token": BOS}
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>", **bos).save_pretrained(folder)


def words_as_ids(folder: Path, text: str) -> list[int]:
    """The ids of a text's words, by the vocabulary alone."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    return [vocabulary[word] for word in text.split()]


class Engine:
    """Stands in for `vllm.LLM`: keeps the prompts it is sent, and answers something."""

    sent: list[list[int]]

    def __init__(self, model: str, **_: Any) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model_config = SimpleNamespace(max_model_len=128)
        self.llm_engine = SimpleNamespace(
            engine_core=SimpleNamespace(shutdown=lambda: None),
            model_config=self.model_config,
            vllm_config=SimpleNamespace(
                device_config=SimpleNamespace(device_type="no device: it samples nothing"),
                parallel_config=SimpleNamespace(world_size=1),
            ),
        )

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    def reset_prefix_cache(self) -> None:
        pass

    def generate(self, prompts: Any, params: Any = None, sampling_params: Any = None, **_: Any) -> list[Any]:
        ids = [list(prompt["prompt_token_ids"]) for prompt in prompts]
        Engine.sent += ids
        params = sampling_params or params
        params = params if isinstance(params, list) else [params] * len(ids)
        Engine.asked += [prompt for prompt, param in zip(ids, params, strict=True) if param.prompt_logprobs is None]
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(text=" v1", index=i, token_ids=[2], finish_reason="stop")
                    for i in range(param.n or 1)
                ],
                prompt_logprobs=[None, *({token: SimpleNamespace(logprob=-1.0)} for token in prompt[1:])],
            )
            for prompt, param in zip(ids, params, strict=True)
        ]


@pytest.fixture(scope="module")
def inputs(lab, tmp_path_factory) -> dict[str, Path]:
    """The lab's corpora, in which the first question of recall begins with the text of BOS."""
    folders = {}
    for role, folder in lab.context("decode").inputs.items() | lab.context("benchmark").inputs.items():
        folders[role] = tmp_path_factory.mktemp("inputs") / "artifact"
        shutil.copytree(folder, folders[role])
    for path in folders["corpus/facts-smoke"].glob("tasks/*/test.parquet"):
        rows = pq.read_table(path).to_pylist()
        rows[0]["question"] = f"{BOS} {rows[0]['question']}"
        pq.write_table(pa.Table.from_pylist(rows), path)
    return folders


@pytest.fixture
def sent(lab, inputs, tmp_path, monkeypatch):
    """Runs a stage with a tokenizer of a kind and an `add_bos`; what its engine was sent."""

    def run(module: Any, kind: str, add_bos: bool | None, tasks: list[Any]) -> list[list[int]]:
        stage = module.__name__.rpartition(".")[2]
        context = lab.context(stage)
        vocabulary = json.loads((context.inputs["checkpoint"] / "tokenizer.json").read_text())["model"]["vocab"]
        save_tokenizer(inputs["checkpoint"], set(vocabulary), kind)
        config = getattr(lab.dag.scale, stage).model_copy(update={"tasks": tasks, "add_bos": add_bos})
        monkeypatch.setattr(lab.dag, "scale", lab.dag.scale.model_copy(update={stage: config}))
        importlib.import_module("lm_eval.models.vllm_causallms")  # takes vLLM's own class, to which it is restored
        monkeypatch.setattr("vllm.LLM", Engine)
        monkeypatch.setattr("lm_eval.models.vllm_causallms.LLM", Engine)
        monkeypatch.setattr("lm_eval.models.vllm_causallms.resolve_hf_chat_template", lambda **_: None)
        for name in ("sent", "asked"):  # all requests, and those that are not for log-probabilities of the prompt
            monkeypatch.setattr(Engine, name, [], raising=False)
        for name in ("state", "out"):
            (tmp_path / name).mkdir()
        state, out = tmp_path / "state", tmp_path / "out"
        context = replace(context, inputs=inputs, state=state, out=out, progress=Progress(state))
        metrics = module.run(context)
        assert {(row["task"], row["shots"]) for row in metrics["results"]} == {
            (task.task, task.shots) for task in tasks
        }
        return Engine.sent

    return run


def expected(lab, inputs, kind, add_bos, tasks, ends=lambda question: [""]):
    """The ids of every prompt and each of its `ends`: the words' own, behind one BOS where there is to be one."""
    begin = [words_as_ids(inputs["checkpoint"], BOS)[0]] if (kind, add_bos) in BEGINS else []
    prompts = []
    for asked in tasks:
        for question in decode.read_questions(lab.dag.items_folder(inputs, asked.task), asked):
            for end in ends(question):
                ids = words_as_ids(inputs["checkpoint"], question.prompt + end)
                prompts.append(ids if ids[0:1] == begin else begin + ids)
    return prompts


@pytest.mark.parametrize(("kind", "add_bos"), CASES)
def test_decode_sends_the_prompts_asked_for(lab, inputs, sent, kind, add_bos):
    tasks = [EvalTask(task="recall", limit=3), EvalTask(task="recall", limit=3, shots=2)]
    looked_at = sent(decode, kind, add_bos, tasks)
    assert all(ids in Engine.asked for ids in looked_at)
    assert Engine.asked == expected(lab, inputs, kind, add_bos, tasks)
    bos = int((kind, add_bos) in BEGINS)
    counts = [ids.count(1) for ids in Engine.asked]
    assert counts == [1, bos, bos, 1 + bos, bos, bos], "the first question brings one itself"


@pytest.mark.parametrize(("kind", "add_bos"), CASES)
def test_task_loss_sends_the_prompts_asked_for(lab, inputs, sent, kind, add_bos):
    tasks = [LossTask(task="recall", limit=3), LossTask(task="recall", limit=3, shots=2)]
    prompts = sent(taskloss, kind, add_bos, tasks)
    assert prompts == expected(lab, inputs, kind, add_bos, tasks, lambda question: [" " + question.gold])


@pytest.mark.parametrize(("kind", "add_bos"), CASES)
def test_lm_eval_sends_the_prompts_asked_for(lab, inputs, sent, kind, add_bos):
    tasks = [EvalTask(task="recall", limit=3), EvalTask(task="recall", limit=3, shots=2)]
    looked_at = sent(benchmark, kind, add_bos, tasks)
    assert all(ids in Engine.asked for ids in looked_at)
    assert sorted(Engine.asked) == sorted(expected(lab, inputs, kind, add_bos, tasks))


@pytest.mark.parametrize(("kind", "add_bos"), CASES)
def test_lm_eval_scores_choices_behind_the_prompts_asked_for(lab, inputs, sent, kind, add_bos):
    tasks = [EvalTask(task="recall_choice", limit=2), EvalTask(task="recall_choice", limit=2, shots=1)]
    prompts = sent(benchmark, kind, add_bos, tasks)
    folder = lab.dag.items_folder(inputs, "recall_choice")
    choices = [
        [f" {choice}" for choice in row["choices"]] for row in pq.read_table(folder / "test.parquet").to_pylist()
    ]
    ends = expected(lab, inputs, kind, add_bos, tasks, lambda question: choices[question.item])
    assert sorted(prompts) == sorted(ends)


@pytest.mark.parametrize("module", [benchmark, decode, taskloss])
def test_bos_that_a_tokenizer_does_not_have_is_refused_before_an_engine_starts(lab, sent, monkeypatch, module):
    monkeypatch.setattr(Engine, "__init__", lambda *_, **__: pytest.fail("an engine was started"))
    task = {"benchmark": EvalTask, "decode": EvalTask, "taskloss": LossTask}[module.__name__.rpartition(".")[2]]
    with pytest.raises(PipelineError, match=r"`add_bos: true`, but the tokenizer has no beginning-of-text token"):
        sent(module, "none", True, [task(task="recall", limit=3)])


@pytest.mark.parametrize(("kind", "add_bos"), CASES)
def test_the_record_of_task_loss_counts_the_answers_tokens_only(tmp_path, kind, add_bos):
    save_tokenizer(tmp_path, {"a", "b", "c"}, kind)
    tokenizer, begin = AutoTokenizer.from_pretrained(tmp_path), int((kind, add_bos) in BEGINS)
    for variant in ("spaced", "authors"):
        ids, positions, straddles = taskloss.encode(tokenizer, "a b", " c a", variant, add_bos)
        assert (len(ids), positions, straddles) == (4 + begin, [2 + begin, 3 + begin], False)


# ---------------------------------------------------------------------------------------------- post-training

QUESTIONS = ["4 + 3", f"{BOS} 1 - 6"]
RECIPE = Grpo(task="sums", steps=1, prompts=2, mini_batch=2, rollouts=2, lr=1e-3, max_prompt=16)


def rows_for(folder: Path, kind: str, **changes: Any) -> tuple[pa.Table, int]:
    """What verl is given for `QUESTIONS`."""
    save_tokenizer(folder, {*"0123456789+-:", "question", "answer"}, kind)
    pq.write_table(pa.table({"question": QUESTIONS, "gold": ["7", "2"]}), folder / "items.parquet")
    return prompt_rows(folder / "items.parquet", folder, RECIPE.model_copy(update=changes))


@pytest.mark.parametrize("form", ["question_answer", "bare"])
@pytest.mark.parametrize(("kind", "add_bos"), CASES)
def test_post_training_prompts_are_what_is_said(tmp_path, kind, add_bos, form):
    table, _ = rows_for(tmp_path, kind, add_bos=add_bos, prompt=form)
    texts = QUESTIONS if form == "bare" else [f"question : {question} answer :" for question in QUESTIONS]
    begin = [1] if (kind, add_bos) in BEGINS else []
    for row, text in zip(table.to_pylist(), texts, strict=True):
        ids = words_as_ids(tmp_path, text)
        assert row["extra_info"]["prompt_ids"] == (ids if ids[:1] == begin else begin + ids)
        assert row["prompt"][0]["content"] == (f"{text}\n\n" if form == "bare" else text)


def test_bos_counts_for_the_longest_prompt(tmp_path):
    """Three words, and three behind a BOS of their own."""
    counts = {
        add_bos: rows_for(tmp_path, "silent", add_bos=add_bos, prompt="bare", max_prompt=4)[1]
        for add_bos in (True, False)
    }
    assert counts == {True: 0, False: 0}
    assert rows_for(tmp_path, "silent", add_bos=False, prompt="bare", max_prompt=3)[1] == 1
    with pytest.raises(PipelineError, match=r"no question fits in grpo.max_prompt = 3 tokens"):
        rows_for(tmp_path, "silent", add_bos=True, prompt="bare", max_prompt=3)


def test_bos_that_the_tokenizer_does_not_have_is_refused_before_verl_starts(tmp_path):
    with pytest.raises(PipelineError, match=r"`add_bos: true`, but the tokenizer has no beginning-of-text token"):
        rows_for(tmp_path, "none", add_bos=True)


def test_rollouts_are_sampled_from_those_ids(tmp_path):
    """Through verl's own data set and batches, in a process of its own: the plugin makes verl's platform the CPU.

    The checkpoint's own chat template would add words; nothing asks it.
    """
    table, _ = rows_for(tmp_path, "silent", add_bos=True, prompt="bare")
    pq.write_table(table, tmp_path / "train.parquet")
    (tmp_path / "chat_template.jinja").write_text("answer {{ messages[0]['content'] }}")
    code = """
import numpy as np
from types import SimpleNamespace
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn
from pipeline.engines.verl.plugin import rollouts

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
settings = OmegaConf.create({"filter_overlong_prompts": False, "cache_dir": FOLDER + "/cache"})
data = RLHFDataset(FOLDER + "/train.parquet", tokenizer, settings)
batch = collate_fn([data[i] for i in range(len(data))])
batch["uid"] = np.array([str(i) for i in range(len(data))], dtype=object)
prompts = tu.get_tensordict(batch)
tu.assign_non_tensor_data(prompts, "global_steps", 1)

sent, put = [], []
class Server:
    def __init__(self):
        self.sample_batch = SimpleNamespace(remote=self.sample)
    def sample(self, prompts, seeds, settings):
        sent.extend(prompts)
        return [[([2], [-1.0])] * settings["n"] for _ in prompts]
rollouts.ray.get = lambda parts: parts
rollouts.tq.kv_batch_put = lambda **batch: put.append(batch)
manager = rollouts.BatchRollouts.__new__(rollouts.BatchRollouts)
settings = {"n": 2, "temperature": 1.0, "top_p": 1, "top_k": -1, "response_length": 4, "seed": 1}
manager.config = OmegaConf.create(settings)
manager.servers, manager.tokenizer, manager.reward = [Server(), Server()], tokenizer, lambda rows: [0.0] * len(rows)
manager.generate_sequences(prompts)
expected = [row["extra_info"]["prompt_ids"] for row in data]
assert sent == expected, (sent, expected)
assert [tensor.tolist() for tensor in put[0]["fields"]["prompts"]] == [ids for ids in expected for _ in range(2)]
print("sent", sent)
"""
    env = trainer.environment(tmp_path, tmp_path / "metrics.jsonl", Execution(device="cpu"))
    done = subprocess.run(
        [sys.executable, "-c", f"FOLDER = {str(tmp_path)!r}\n{code}"],
        env=env | {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first = words_as_ids(tmp_path, f"{BOS} {QUESTIONS[0]}")
    assert f"sent {[first, words_as_ids(tmp_path, QUESTIONS[1])]}" in done.stdout


def test_a_text_that_begins_with_bos_gets_no_second_one(tmp_path):
    for kind, add_bos in CASES:
        save_tokenizer(tmp_path, {"a"}, kind)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        assert prompt_ids(tokenizer, f"{BOS} a {BOS}", add_bos) == words_as_ids(tmp_path, f"{BOS} a {BOS}")
