"""Post-training: verl's settings, reward, prompts, weights, logs and ends of runs. No training is run here."""

import inspect
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.config.recipes import Grpo
from pipeline.engines.verl import trainer
from pipeline.errors import PipelineError
from pipeline.runtime.execution import Execution
from pipeline.stages.grpo import prompt_rows
from pipeline.tasks.reward import compute_scores

RECIPE = Grpo(task="sums", steps=4, prompts=8, mini_batch=4, rollouts=3, lr=1e-3, kl_coef=0.02, clip=0.3, dtype="fp32")
EOD = "<|eod|>"


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word-level tokenizer as the tokenizer stage makes it: adds BOS by itself, and so does its chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [EOD, *map(str, range(7)), "+", "-", "*", "=", ";", "question", "answer", ":", "####"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=EOD))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single=f"{EOD} $A", special_tokens=[(EOD, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=EOD, eos_token=EOD, pad_token=EOD)
    tokenizer.chat_template = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def items(tmp_path: Path) -> Path:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"question": ["4 + 3 * 2", "5", "1 - 6"], "gold": ["0", "5", "2"]}), path)
    return path


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (" 4 + 3 = 0 ; 0 * 2 = 0 #### 0", 1.0),
        ("#### 0", 1.0),
        (" 4 + 3 = 0 #### 1", 0.0),
        (" 4 + 3 = 0 ; 0 * 2 = 0", 0.0),
        ("#### 1 #### 0", 0.0),  # the first final answer counts
        ("", 0.0),
    ],
)
def test_reward_is_one_for_the_right_final_answer_only(text: str, reward: float) -> None:
    assert compute_scores([("sums", text, "0")], "answer") == [reward]


def test_prompts_reach_verl_with_the_ids_that_evaluations_use(tokenizer_folder: Path, items: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    table, too_long = prompt_rows(items, tokenizer_folder, RECIPE.model_copy(update={"max_prompt": 16}))
    assert too_long == 0 and table.num_rows == 3
    for row in table.to_pylist():
        ids = row["extra_info"]["prompt_ids"]
        assert ids == tokenizer(row["prompt"][0]["content"])["input_ids"]
        assert ids[0] == tokenizer.bos_token_id != ids[1]
    first = table.to_pylist()[0]
    assert first["reward_model"]["ground_truth"] == "0" and first["data_source"] == "sums"


def test_questions_longer_than_the_limit_are_left_out_and_counted(tokenizer_folder: Path, items: Path) -> None:
    table, too_long = prompt_rows(items, tokenizer_folder, RECIPE.model_copy(update={"max_prompt": 7}))
    assert (table.num_rows, too_long) == (1, 2)
    with pytest.raises(PipelineError, match="max_prompt = 3"):
        prompt_rows(items, tokenizer_folder, RECIPE.model_copy(update={"max_prompt": 3}))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_settings_are_valid_for_verl_and_carry_the_recipe(device: str, tmp_path: Path) -> None:
    import verl as installed
    from hydra import compose, initialize_config_dir
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    settings = trainer.overrides(RECIPE, Execution(device=device), tmp_path / "model", tmp_path, train_rows=10)
    settings = [item for item in settings if not item.startswith("hydra.")]
    folder = Path(installed.__file__).parent / "trainer" / "config"
    with initialize_config_dir(str(folder), version_base=None):
        config = compose("ppo_trainer", settings)
    validate_config(config, need_reference_policy(config), need_critic(config))
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert config.algorithm.adv_estimator == "grpo" and not need_critic(config) and need_reference_policy(config)
    assert (actor.optim.lr, actor.kl_loss_coef, actor.clip_ratio_high, actor.ppo_mini_batch_size) == (
        1e-3,
        0.02,
        0.3,
        4,
    )
    assert not config.actor_rollout_ref.model.trust_remote_code and not config.data.trust_remote_code
    assert (rollout.n, config.data.train_batch_size, config.trainer.total_training_steps) == (3, 8, 4)
    assert rollout.dtype == "float32" and actor.fsdp_config.mixed_precision.param_dtype == "fp32"
    assert config.trainer.total_epochs * (10 // 8) >= 4, "the data must last for all steps"
    # What the paper's recipe has and verl's defaults are: an upgrade must not change it unseen.
    optim = actor.optim
    assert (optim.optimizer, optim.optimizer_impl, optim.override_optimizer_config) == ("AdamW", "torch.optim", None)
    assert (list(optim.betas), optim.weight_decay, optim.clip_grad) == ([0.9, 0.999], 0.01, 1.0)
    assert (optim.lr_scheduler_type, optim.lr_warmup_steps, optim.lr_warmup_steps_ratio) == ("constant", -1, 0)
    assert inspect.signature(torch.optim.AdamW).parameters["eps"].default == 1e-8
    assert (rollout.temperature, rollout.top_p, rollout.top_k, rollout.val_kwargs.do_sample) == (1.0, 1, -1, False)
    assert (actor.ppo_epochs, actor.loss_agg_mode, config.algorithm.norm_adv_by_std_in_grpo) == (1, "token-mean", True)


@pytest.mark.parametrize(("dual_clip", "bound"), [(3.0, 3.0), (1.5, 1.5), (None, None)])
def test_the_ratio_is_bounded_where_the_advantage_is_negative_as_said(
    dual_clip: float | None, bound: float | None, tmp_path: Path
) -> None:
    """verl's own loss, at ratios up to those at which it cuts their logarithm."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.workers.config import FSDPActorConfig

    recipe = RECIPE.model_copy(update={"dual_clip": dual_clip})
    settings = trainer.overrides(recipe, Execution(device="cpu"), tmp_path, tmp_path, train_rows=10)
    given = {
        item.partition("=")[0].rpartition(".")[2]: item.partition("=")[2] for item in settings if "clip_ratio" in item
    }
    config = FSDPActorConfig(
        strategy="fsdp2",
        rollout_n=1,
        ppo_mini_batch_size=1,
        ppo_micro_batch_size_per_gpu=1,
        **{name: float(value) for name, value in given.items()},
    )
    for log_ratio in (0.0, 0.4, 2.0, 10.0, 19.0, 20.0):
        old, new = torch.zeros(1, 1), torch.full((1, 1), log_ratio)
        for advantage in (-1.0, 1.0):
            loss, _ = get_policy_loss_fn("vanilla")(
                old, new, torch.full((1, 1), advantage), torch.ones(1, 1), "token-mean", config
            )
            ratio = torch.exp(new).item()
            without = max(-advantage * ratio, -advantage * min(max(ratio, 1 - recipe.clip), 1 + recipe.clip))
            expected = without if advantage > 0 or bound is None else min(without, bound)
            assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["answer", "code"])
def test_the_reward_and_its_kind_reach_the_trainer(kind: str, tmp_path: Path) -> None:
    import verl as installed
    from hydra import compose, initialize_config_dir
    from verl.trainer.ppo.reward import get_custom_reward_fn

    recipe = RECIPE.model_copy(update={"reward": kind})
    settings = trainer.overrides(recipe, Execution(device="cpu"), tmp_path / "model", tmp_path, train_rows=10)
    with initialize_config_dir(str(Path(installed.__file__).parent / "trainer" / "config"), version_base=None):
        config = compose("ppo_trainer", [item for item in settings if not item.startswith("hydra.")])
    reward = get_custom_reward_fn(config)
    program = "def simple_math_problem():\n    return 2 * 3\n#### 5"
    assert reward is not None
    assert reward([("sums", program, "5"), ("sums", program, "6")]) == ([1, 0] if kind == "answer" else [0, 1])


def test_the_second_gradient_clip_is_in_the_actor_only_if_asked_for(tmp_path: Path) -> None:
    def library(l1_clip: bool) -> str:
        recipe = RECIPE.model_copy(update={"l1_clip": l1_clip})
        settings = trainer.overrides(recipe, Execution(device="cpu"), tmp_path, tmp_path, train_rows=10)
        return next(item for item in settings if "external_lib" in item).partition("=")[2]

    assert (library(False), library(True)) == (f"{trainer.PLUGIN}.registry", f"{trainer.PLUGIN}.l1_clip")
    code = """
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from verl.utils.import_utils import import_external_libs
from verl.workers.config import FSDPOptimizerConfig
from verl.workers.engine import EngineRegistry

import_external_libs(LIBRARY)
from verl.workers.rollout import router
assert router.get_router_handle.__name__ == "_no_balancer", "what registry does is done too"
dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
engine = EngineRegistry.get_engine_cls("language_model", "fsdp2")
for shard in (False, True):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    if shard:
        fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
    worker = engine.__new__(engine)
    worker.optimizer_config = FSDPOptimizerConfig(lr=1.0, weight_decay=0.0, optimizer="SGD")
    worker.module, worker.scaler, worker._qat_enabled = model, None, False
    worker.optimizer = worker._build_optimizer(model)
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.ones(2, 4)).square().sum().backward()
    grads = [p.grad.detach().clone() for p in model.parameters()]
    norm = worker.optimizer_step()
    whole = lambda t: t.full_tensor() if hasattr(t, "full_tensor") else t
    moved = torch.cat([(whole(a) - whole(b)).flatten() for a, b in zip(before, model.parameters())])
    flat = torch.cat([whole(grad).flatten() for grad in grads])
    assert flat.norm() > 1 and abs(float(norm) - float(flat.norm())) < 1e-4, "the norm logged is that before clipping"
    by_l2 = flat / flat.norm()
    expected = by_l2 / by_l2.abs().sum() if CLIPPED else by_l2
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)
print("as expected")
"""
    env = trainer.environment(tmp_path, tmp_path / "metrics.jsonl", Execution(device="cpu"))
    env |= {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    for clipped in (True, False):
        program = f"LIBRARY, CLIPPED = {library(clipped)!r}, {clipped}\n{code}"
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "as expected" in done.stdout
