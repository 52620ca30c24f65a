"""Which settings of verl a recipe's `extra` may give, by verl's own list of them.

verl ships its whole `ppo_trainer` configuration as one file, which is read here without importing verl (seconds), so
that a misspelt key is refused when the configuration is loaded and not after pre-training.
"""

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from pipeline.config.base import near

Value = str | int | Annotated[float, Field(allow_inf_nan=False)] | bool | None

REFERENCE = Path("trainer/config/_generated_ppo_trainer.yaml")  # below verl's package
KEY = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", re.ASCII)  # no `_target_`, which names a class to make

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
# What a recipe names, by verl's name for it.
RECIPE = {
    "data.train_batch_size": "prompts",
    "data.max_prompt_length": "max_prompt",
    "data.max_response_length": "max_response",
    "data.seed": "seed",
    f"{ACTOR}.data_loader_seed": "seed",
    f"{ACTOR}.optim.lr": "lr",
    f"{ACTOR}.optim.weight_decay": "weight_decay",
    f"{ACTOR}.optim.clip_grad": "clip_grad",
    f"{ACTOR}.ppo_mini_batch_size": "mini_batch",
    f"{ACTOR}.clip_ratio": "clip",
    f"{ACTOR}.clip_ratio_c": "dual_clip",
    f"{ACTOR}.kl_loss_coef": "kl_coef",
    f"{ACTOR}.fsdp_config.mixed_precision": "dtype",
    "actor_rollout_ref.ref.fsdp_config.mixed_precision": "dtype",
    "actor_rollout_ref.ref.fsdp_config.model_dtype": "dtype",
    f"{ROLLOUT}.n": "rollouts",
    f"{ROLLOUT}.temperature": "temperature",
    f"{ROLLOUT}.dtype": "dtype",
    f"{ROLLOUT}.seed": "seed",
    f"{ROLLOUT}.max_model_len": "max_prompt",
    f"{ROLLOUT}.prompt_length": "max_prompt",
    f"{ROLLOUT}.response_length": "max_response",
    "actor_rollout_ref.model.external_lib": "l1_clip",
    "trainer.total_training_steps": "steps",
    "trainer.test_freq": "eval_interval",
    "reward": "reward",
}
# What says where and how a run runs: the pipeline's own to decide, with the sections below them.
PIPELINE = {
    "trainer",
    "ray_kwargs",
    "transfer_queue",
    "custom_reward_function",
    "data.train_files",
    "data.val_files",
    "data.dataloader_num_workers",
    "actor_rollout_ref.model.path",
    "actor_rollout_ref.model.override_config.attn_implementation",
    "actor_rollout_ref.model.use_remove_padding",
    "actor_rollout_ref.model.enable_gradient_checkpointing",
    f"{ACTOR}.strategy",
    f"{ACTOR}.use_dynamic_bsz",
    f"{ACTOR}.use_torch_compile",
    f"{ACTOR}.fsdp_config.use_torch_compile",
    f"{ACTOR}.checkpoint",
    "actor_rollout_ref.ref.fsdp_config.use_torch_compile",
    "actor_rollout_ref.ref.fsdp_config.forward_only",
    "actor_rollout_ref.ref.optim",
    f"{ROLLOUT}.name",
    f"{ROLLOUT}.tensor_model_parallel_size",
    f"{ROLLOUT}.enforce_eager",
    f"{ROLLOUT}.free_cache_engine",
    f"{ROLLOUT}.enable_sleep_mode",
    f"{ROLLOUT}.enable_chunked_prefill",
    f"{ROLLOUT}.agent",
    f"{ROLLOUT}.checkpoint_engine",
    f"{ROLLOUT}.engine_kwargs.vllm.kv_cache_memory_bytes",
    f"{ROLLOUT}.engine_kwargs.vllm.distributed_executor_backend",
}
REMOTE_CODE = "trust_remote_code"  # wherever it stands
# What the pipeline sets because the paper's recipe has it so, and a recipe may change.
OPEN = {
    "algorithm.adv_estimator",
    "algorithm.use_kl_in_reward",
    f"{ACTOR}.clip_ratio_low",
    f"{ACTOR}.clip_ratio_high",
    f"{ACTOR}.use_kl_loss",
    f"{ACTOR}.kl_loss_type",
    f"{ACTOR}.entropy_coeff",
}


@cache
def reference() -> dict[str, Any] | None:
    """verl's whole configuration with its defaults; None where verl is not installed."""
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        return None
    with Path(spec.submodule_search_locations[0], REFERENCE).open(encoding="utf-8") as file:
        loaded: dict[str, Any] = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return loaded


def refusal(key: str) -> str | None:
    """Why a key cannot be given under `extra`, as the end of a sentence with the way out; None if it can."""
    if not KEY.fullmatch(key):
        return "is not a dotted key of verl's configuration, such as actor_rollout_ref.actor.use_kl_loss"
    if key.rpartition(".")[2] == REMOTE_CODE:
        return "would run code that comes with a checkpoint, which is never done; leave it out"
    if own := _owner(key, RECIPE):
        return f"is set by this recipe; give `{RECIPE[own]}` in its place"
    if _owner(key, PIPELINE):
        return "says where or how verl runs, which the pipeline decides (profiles/); leave it out"
    node: Any = reference()
    if node is None:
        return None  # without verl nothing can be trained either
    for i, part in enumerate(key.split(".")):
        if node == {}:
            return None  # verl takes any key here, and passes it on
        if not isinstance(node, dict) or part not in node:
            above = ".".join(key.split(".")[:i]) or "its top level"
            hint = near(part, [str(name) for name in node]) if isinstance(node, dict) else "it is a single value"
            return f"is not in verl's configuration: there is no '{part}' in {above}; {hint}"
        node = node[part]
    return f"is a section; give one of its keys: {', '.join(map(str, node))}" if isinstance(node, dict) else None


def added(key: str) -> bool:
    """Whether a key that may be given is not in verl's configuration but below one of its open mappings."""
    node: Any = reference()
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return True
        node = node[part]
    return False


def _owner(key: str, among: dict[str, str] | set[str]) -> str | None:
    """The entry of `among` that is the key or a section that holds it."""
    parts = key.split(".")
    sections = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return next((section for section in reversed(sections) if section in among), None)
