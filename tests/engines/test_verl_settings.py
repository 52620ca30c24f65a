"""Settings under `extra` of the GRPO recipe: verl composes them as they were given."""

from pathlib import Path

import pytest

from pipeline.config import verl_keys
from pipeline.config.recipes import Grpo
from pipeline.engines.verl import trainer
from pipeline.runtime.execution import Execution


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_settings_beyond_the_recipe_reach_verl_as_they_are(device: str, tmp_path: Path) -> None:
    import verl as installed
    from hydra import compose, initialize_config_dir
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    odd = "it's a \\'b\\ \"c\" ${d} \\${e} 実験\\"
    extra: dict[str, verl_keys.Value] = {
        "actor_rollout_ref.actor.use_kl_loss": False,
        "actor_rollout_ref.actor.clip_ratio_high": 0.28,
        "actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-sum",
        "actor_rollout_ref.rollout.engine_kwargs.vllm.max_num_seqs": 8,
        "actor_rollout_ref.rollout.engine_kwargs.vllm.served_model_name": odd,
        "actor_rollout_ref.rollout.engine_kwargs.vllm.seed_text": "null",
        "actor_rollout_ref.actor.fsdp_config.full_determinism": True,
        "data.gen_batch_size": None,
    }
    recipe = Grpo(task="sums", steps=4, prompts=8, mini_batch=4, lr=1e-3, clip=0.3, extra=extra)
    settings = trainer.overrides(recipe, Execution(device=device), tmp_path / "model", tmp_path, train_rows=10)
    with initialize_config_dir(str(Path(installed.__file__).parent / "trainer" / "config"), version_base=None):
        config = compose("ppo_trainer", [item for item in settings if not item.startswith("hydra.")])
    validate_config(config, need_reference_policy(config), need_critic(config))
    assert not need_reference_policy(config)
    actor, vllm = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout.engine_kwargs.vllm
    assert (actor.clip_ratio_low, actor.clip_ratio_high, actor.loss_agg_mode) == (0.3, 0.28, "seq-mean-token-sum")
    assert (vllm.max_num_seqs, vllm.served_model_name, vllm.seed_text) == (8, odd, "null")
    assert actor.fsdp_config.full_determinism is True and config.data.gen_batch_size is None
    assert vllm.kv_cache_memory_bytes == Execution(device=device).memory_mb << 20, "ours beside it"


def test_verls_list_of_its_settings_is_what_it_composes() -> None:
    """By this list keys under `extra` are refused; verl's own start composes."""
    import verl as installed
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    def keys(node: object, path: str = "") -> set[str]:
        if not isinstance(node, dict) or not node:
            return {path}
        return {key for name, inner in node.items() for key in keys(inner, f"{path}.{name}")}

    with initialize_config_dir(str(Path(installed.__file__).parent / "trainer" / "config"), version_base=None):
        composed = OmegaConf.to_container(compose("ppo_trainer"), resolve=False)
    listed = verl_keys.reference()
    assert listed is not None and keys(composed) - {".model_engine"} == keys(listed) - {".model_engine"}
