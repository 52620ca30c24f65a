"""`extra` of the GRPO recipe: which of verl's settings it may give, and how they reach verl."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import verl_keys
from pipeline.config.recipes import Grpo
from pipeline.dag.dag import Dag
from pipeline.engines.verl import trainer
from pipeline.errors import PipelineError
from pipeline.runtime.execution import Execution
from tests.unit.test_config import grid_file

ACTOR = "actor_rollout_ref.actor"
VLLM = "actor_rollout_ref.rollout.engine_kwargs.vllm"


def overrides(device: str = "cpu", **extra: Any) -> dict[str, str]:
    """The settings with which verl is started, as Hydra overrides by key."""
    recipe = Grpo(task="sums", steps=4, prompts=8, mini_batch=4, lr=1e-3, extra=extra)
    given = trainer.overrides(recipe, Execution(device=device), Path("model"), Path("work"), train_rows=10)
    pairs = [item.partition("=")[::2] for item in given]
    assert len({key.lstrip("+") for key, _ in pairs}) == len(pairs), "no key is given twice"
    return dict(pairs)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_setting_that_we_give_is_refused_or_open_on_purpose(device: str) -> None:
    keys = {key.lstrip("+") for key in overrides(device)}
    free = {key for key in keys if verl_keys.refusal(key) is None}
    assert free == verl_keys.OPEN


@pytest.mark.parametrize("names", [verl_keys.RECIPE, verl_keys.PIPELINE, verl_keys.OPEN])
def test_the_names_of_settings_are_verls_own(names: set[str]) -> None:
    """A setting that an upgrade renames would no longer be refused."""
    missing = [name for name in names if verl_keys.added(name)]
    ours = [key for key in (*overrides("cpu"), *overrides("cuda")) if key.startswith("+")]
    assert {f"+{name}" for name in missing} <= set(ours)
    assert set(verl_keys.RECIPE.values()) <= set(Grpo.model_fields)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("data.seed", "is set by this recipe; give `seed` in its place"),
        (f"{ACTOR}.optim.lr", "is set by this recipe; give `lr` in its place"),
        (f"{ACTOR}.ppo_mini_batch_size", "is set by this recipe; give `mini_batch` in its place"),
        ("trainer.total_training_steps", "is set by this recipe; give `steps` in its place"),
        ("trainer.device", "says where or how verl runs"),
        ("data.train_files", "says where or how verl runs"),
        ("ray_kwargs.ray_init.num_cpus", "says where or how verl runs"),
        (f"{ACTOR}.use_kl_los", f"there is no 'use_kl_los' in {ACTOR}; did you mean 'use_kl_loss'?"),
        ("algorthm.gamma", "there is no 'algorthm' in its top level; did you mean 'algorithm'?"),
        (f"{ACTOR}.use_kl_loss.x", "it is a single value"),
        (f"{ACTOR}.policy_loss", "is a section; give one of its keys: "),
        ("hydra.run.dir", "there is no 'hydra'"),
        (f"{ACTOR}._target_", "is not a dotted key of verl's configuration"),
        (f"+{ACTOR}.use_kl_loss", "is not a dotted key of verl's configuration"),
        (f"{ACTOR}.use_kl_loss=1 x", "is not a dotted key of verl's configuration"),
    ],
)
def test_a_setting_that_cannot_be_given_is_refused_when_the_configuration_is_loaded(
    tmp_path: Path, key: str, said: str
) -> None:
    with pytest.raises(PipelineError) as error:
        Dag.load("smoke", grid_file(tmp_path, grpo__extra={f"{ACTOR}.shuffle": True, key: 1}))
    (line,) = str(error.value).splitlines()
    assert f": scales.smoke.grpo.extra: '{key}' " in line and said in line
    number = int(line.removeprefix(f"{tmp_path}/grid.yaml:").partition(":")[0])
    assert key in (tmp_path / "grid.yaml").read_text().splitlines()[number - 1]


@pytest.mark.parametrize("value", [[1], {"a": 1}, float("inf")])
def test_a_value_is_a_single_one(tmp_path: Path, value: Any) -> None:
    with pytest.raises(PipelineError, match=r"scales.smoke.grpo.extra.*shuffle"):
        Dag.load("smoke", grid_file(tmp_path, grpo__extra={f"{ACTOR}.shuffle": value}))


def test_settings_come_last_and_open_mappings_are_added_to() -> None:
    assert overrides()[f"{ACTOR}.use_kl_loss"] == "True"
    given = overrides(**{f"{ACTOR}.use_kl_loss": False, f"{VLLM}.max_num_seqs": 8, f"{ACTOR}.loss_agg_mode": "a 'b'"})
    assert given[f"{ACTOR}.use_kl_loss"] == "false"
    assert given[f"+{VLLM}.max_num_seqs"] == "8" and f"{VLLM}.max_num_seqs" not in given
    assert given[f"{ACTOR}.loss_agg_mode"] == r"'a \'b\''"


def test_settings_are_identity_of_post_training_and_only_if_given(tmp_path: Path) -> None:
    def prints(**changes: Any) -> dict[str, str]:
        dag = Dag.load("smoke", grid_file(tmp_path, **changes))
        return {job.stage: dag.fingerprint(job) for job in dag.jobs if job.variant in (None, "base")}

    before = prints()
    assert prints(grpo__extra={}) == before
    after = prints(grpo__extra={f"{ACTOR}.use_kl_loss": False})
    assert {stage for stage in before if after[stage] != before[stage]} == {
        "grpo",
        "table",
        "claims",
        "figures",
        "report",
    }
