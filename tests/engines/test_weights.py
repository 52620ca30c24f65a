"""Weights that are not numbers are refused by whatever publishes or loads them, and so are log-probabilities."""

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.artifacts.record import RECORD
from pipeline.config.evaluations import EvalTask
from pipeline.config.recipes import Grpo
from pipeline.engines import vllm as engine
from pipeline.errors import PipelineError
from pipeline.models import weights
from pipeline.runner import execute
from pipeline.stages import benchmark, decode, grpo, pretrain, taskloss
from pipeline.tasks.items import read_questions
from tests.engines.test_convert import convert
from tests.engines.test_pretrain import make
from tests.helpers.checkpoints import CPU
from tests.helpers.tokens import pretrain_job

NAN, INF = float("nan"), float("inf")
EXPERT = "model.layers.1.block_sparse_moe.experts.3.w2.weight"


def plant(path: Path, name: str, value: float, where: int = 7) -> None:
    """Overwrite one number of a tensor of a safetensors file."""
    tensors = load_file(path)
    tensors[name].view(-1)[where] = value
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture
def checkpoint(lab: Any, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to break."""
    return Path(shutil.copytree(lab.checkpoint, tmp_path / "checkpoint"))


# ------------------------------------------------------------------------------------------------------- the scan


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("block", [64, 16 << 20])
def test_every_value_that_is_not_finite_is_counted(dtype, block, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "BLOCK", block)
    values = torch.linspace(-400, 400, 1001)
    values[3] = NAN
    if dtype != torch.float8_e4m3fn:  # which has no infinity
        values[500], values[1000] = INF, -INF
    whole = torch.arange(9, dtype=torch.int64)
    save_file({"bad": values.to(dtype), "good": torch.ones(40).to(dtype), "ids": whole}, tmp_path / "a.safetensors")
    found = weights.nonfinite([tmp_path / "a.safetensors"])
    assert found == {(tmp_path / "a.safetensors", "bad"): int((~values.to(dtype).float().isfinite()).sum())}


def test_extreme_but_finite_numbers_pass(tmp_path):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        limits = torch.finfo(dtype)
        ends = torch.tensor([limits.max, limits.min, limits.tiny, 0.0, -0.0], dtype=dtype)
        save_file({"ends": ends, "none": torch.zeros(0, dtype=dtype)}, tmp_path / f"{dtype}.safetensors")
    weights.refuse_nonfinite(tmp_path, "way out")
    assert len(list(tmp_path.iterdir())) == 3


def test_the_message_names_file_tensor_number_and_way_out(tmp_path):
    for i in range(5):
        save_file({f"t{i}": torch.full((1200,), INF)}, tmp_path / f"{i}.safetensors")
    said = (
        "0.safetensors: tensor 't0' has 1,200; .*'t2' has 1,200 values that are NaN or infinite; and 2 more tensors; go"
    )
    with pytest.raises(PipelineError, match=said):
        weights.refuse_nonfinite(tmp_path, "go", lambda path: path.name)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"\x02" + b"\0" * 7 + b"{]"])
def test_a_file_that_is_no_safetensors_file_is_named(content, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(PipelineError, match="a.safetensors: truncated or damaged"):
        weights.nonfinite([tmp_path / "a.safetensors"])


# ------------------------------------------------------------------------------------------- stages that publish


@pytest.mark.parametrize("value", [NAN, INF])
def test_convert_publishes_no_such_weights(value, tmp_path):
    dag, results = make(tmp_path, steps=4, hidden=64, micro_batch=4)
    name = "decoder.layers.mlp.experts.experts.linear_fc2.weight"

    def trained(ctx: Any) -> dict[str, Any]:
        metrics = pretrain.run(ctx)
        (path,) = (ctx.out / "checkpoint").glob("*.safetensors")
        tensors = load_file(path)
        key = next(key for key in tensors if key.startswith(name))
        tensors[key].view(-1)[-1] = value
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        save_file(tensors, path, metadata=metadata)
        return metrics

    execute(dag, pretrain_job(dag), trained, results, CPU)
    with pytest.raises(
        PipelineError, match=r"tensor 'model.layers.0.\S+' has 1 values that are NaN or infinite; nothing"
    ):
        convert(dag, results)


def test_a_last_step_that_breaks_the_weights_is_found_and_its_save_not_made(tmp_path):
    """The loss of a step is that before its update: that of the last step tells nothing of the weights."""
    dag, results = make(tmp_path, steps=1, warmup_steps=0, lr=1e39, min_lr=0, eval_interval=5, eval_batches=1)
    with pytest.raises(PipelineError, match=r"at step 1: training diverged|after step 1: training diverged"):
        execute(dag, pretrain_job(dag), pretrain.run, results, CPU)
    assert not list(results.rglob("step-*")) and not (results / pretrain_job(dag).folder / RECORD).exists()


def test_grpo_neither_starts_from_nor_publishes_such_weights(lab, checkpoint, tmp_path, monkeypatch):
    items = tmp_path / "items"
    items.mkdir()
    recipe = Grpo(
        task="sums",
        steps=1,
        prompts=2,
        rollouts=2,
        mini_batch=2,
        max_prompt=32,
        max_response=16,
        eval_interval=1,
        lr=1e-3,
    )
    said: list[str] = []
    inputs = {
        "checkpoint": checkpoint,
        "corpus/sums-smoke": lab.results / lab.dag.task_input("sums")["corpus/sums-smoke"].folder,
    }
    for folder in ("state", "out"):
        (tmp_path / folder).mkdir()
    ctx: Any = SimpleNamespace(
        scale=SimpleNamespace(grpo=recipe),
        dag=lab.dag,
        inputs=inputs,
        items_folder=partial(lab.dag.items_folder, inputs),
        state=tmp_path / "state",
        out=tmp_path / "out",
        execution=CPU,
        say=said.append,
        progress=lambda *_: None,
        timing={},
    )
    # verl is done, and its metrics are in order; what it made is not
    step = {name: 0.0 for name in grpo.COLUMNS.values()} | {"val-core/sums/acc/mean@1": 0.5, grpo.SECONDS: 1.0}
    monkeypatch.setattr(grpo.outputs, "resume_step", lambda _: 1)
    monkeypatch.setattr(grpo.outputs, "read_metrics", lambda _: {0: step, 1: step})

    def publish(trained: Path, old: Path, out: Path) -> None:
        shutil.copytree(old, out, dirs_exist_ok=True)
        plant(out / "model.safetensors", EXPERT, NAN)

    monkeypatch.setattr(grpo.outputs, "publish_weights", publish)
    with pytest.raises(PipelineError, match=f"'{EXPERT}' has 1 values .*; nothing is published: GRPO diverged"):
        grpo.run(ctx)
    plant(checkpoint / "model.safetensors", EXPERT, INF)
    monkeypatch.setattr(grpo.outputs, "resume_step", pytest.fail)
    with pytest.raises(PipelineError, match=f"{checkpoint}/model.safetensors: tensor '{EXPERT}' .*GRPO cannot start"):
        grpo.run(ctx)


# --------------------------------------------------------------------------------------------------- evaluations


@pytest.mark.parametrize("value", [NAN, -INF])
def test_no_engine_starts_on_such_weights(value, checkpoint):
    plant(checkpoint / "model.safetensors", EXPERT, value)
    said = f"model.safetensors: tensor '{EXPERT}' has 1 values that are NaN or infinite; `python -m pipeline verify"
    with pytest.raises(PipelineError, match=said), engine.serving(pytest.fail, checkpoint, {}):
        pass


def test_prompts_without_finite_log_probabilities_are_named():
    def output(*values: float) -> Any:
        return SimpleNamespace(
            prompt_logprobs=[None, *({i: SimpleNamespace(logprob=v)} for i, v in enumerate(values, 1))]
        )

    outputs = [output(-1.0, -2.0), output(-1.0, NAN)]
    llm = SimpleNamespace(generate=lambda prompts, params, use_tqdm: outputs[: len(prompts)])
    engine.check_prompts(llm, [[0, 1, 2]], ["task 'a', item 0"])
    with pytest.raises(PipelineError, match="^task 'a', item 1: 1 of 2 log-probabilities are nan: finite weights"):
        engine.check_prompts(llm, [[0, 1, 2], [0, 1, 2]], ["task 'a', item 0", "task 'a', item 1"])
    with pytest.raises(PipelineError, match="^b: 1 of 1 log-probabilities are -inf"):
        engine.check_finite("b", [-INF])


def test_log_probabilities_that_are_not_finite_name_task_and_item(lab, checkpoint):
    """The weights are finite, but the logits made of them are beyond fp32."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.vllm_causallms import VLLM

    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].sign() * 3e38
    save_file(tensors, path, metadata={"format": "pt"})
    ctx = lab.context("benchmark")
    ctx.state.mkdir(exist_ok=True)
    asked = read_questions(ctx.items_folder("sums"), EvalTask(task="sums", limit=3))
    config = lab.dag.scale.decode
    assert config is not None
    settings = engine.options("fp32", 128, 0, CPU) | {"batch_size": "auto"}
    with engine.serving(VLLM, checkpoint, settings) as lm:
        with pytest.raises(PipelineError, match=r"^task 'sums', item 0: \d+ of \d+ log-probabilities are (nan|-?inf)"):
            taskloss.score(lm.model, asked, 128)
        with pytest.raises(PipelineError, match=r"^task 'sums', item 0: \d+ of \d+ log-probabilities are (nan|-?inf)"):
            decode.sample(lm.model, asked, config)
        for kind, arguments in (("loglikelihood", ("n1 c1 :", " v1")), ("generate_until", ("n1 c1 :", {"until": []}))):
            request = Instance(kind, {}, arguments, 0, metadata=("recall", 5, 1))
            with (
                benchmark.remembered(lm, ctx, f"planted-{kind}"),
                pytest.raises(PipelineError, match=r"^task 'recall', item 5: .* log-probabilities are (nan|-?inf)"),
            ):
                getattr(lm, kind)([request])
