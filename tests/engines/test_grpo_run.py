"""Post-training for real, by verl, on a tiny checkpoint: settings under `grpo.extra` have their effect."""

import re
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from pipeline.config import verl_keys
from pipeline.dag.dag import Dag
from pipeline.stages import grpo
from tests.helpers.checkpoints import Lab
from tests.helpers.curves import read_curves

EXTRA: dict[str, verl_keys.Value] = {
    "actor_rollout_ref.actor.use_kl_loss": False,
    "actor_rollout_ref.actor.optim.lr_warmup_steps": 1000,
    "actor_rollout_ref.rollout.engine_kwargs.vllm.max_num_seqs": 3,  # a key that verl's configuration does not list
}


@pytest.fixture
def post_training(fresh: Lab) -> Lab:
    """The tiny checkpoint, from which two steps of GRPO are to be made with `EXTRA`."""
    grid = yaml.safe_load(fresh.config.read_text())
    smoke, folder = grid["scales"]["smoke"], fresh.results.parent
    smoke["points"] = [point | {"grpo": True} for point in smoke["points"]]
    smoke["grpo"] = {"steps": 2, "prompts": 4, "rollouts": 2, "mini_batch": 4, "eval_items": 4, "extra": EXTRA}
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid))
    (folder / "sources.yaml").write_bytes(fresh.config.with_name("sources.yaml").read_bytes())
    return Lab(folder / "grid.yaml", fresh.results, Dag.load("smoke", folder / "grid.yaml"))


@pytest.mark.slow  # two minutes; what verl makes of such settings is in test_verl_settings.py
def test_settings_beyond_the_recipe_change_what_verl_does(
    post_training: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, publish = tmp_path / "verl.log", grpo.outputs.publish_weights

    def keep_log(trained: Path, checkpoint: Path, out: Path) -> None:
        log.write_bytes((trained.parents[3] / "metrics-000.log").read_bytes())  # the state folder goes at the end
        publish(trained, checkpoint, out)

    monkeypatch.setattr(grpo.outputs, "publish_weights", keep_log)
    record = post_training.run(grpo)
    assert record.settings["grpo"]["extra"] == EXTRA

    rows = post_training.rows("grpo", "training.parquet")
    assert [row["step"] for row in rows] == [1, 2]
    assert [row["kl"] for row in rows] == [None, None], "there is no KL term to be measured"

    folder = post_training.results.parent / post_training.job("grpo").log.with_suffix("")
    curves = read_curves(folder)
    assert [step for step, _ in curves["training/reward"]] == [1, 2] and "training/kl" not in curves
    assert [value for _, value in curves["training/reward"]] == pytest.approx([row["reward"] for row in rows])
    accuracies = {row["step"]: row["accuracy"] for row in post_training.rows("grpo", "validation.parquet")}
    assert dict(curves["validation/accuracy"]) == pytest.approx(accuracies)

    before, after = (load_file(post_training.folder(stage) / "model.safetensors") for stage in ("convert", "grpo"))
    change = max((after[name] - before[name]).abs().max().item() for name in before)
    recipe = post_training.dag.scale.grpo
    assert recipe is not None
    assert 0 < change < 2 * recipe.lr / 1000, "learning rates of steps 0 and 1 of a warm-up of 1,000"

    assert re.search(r"'--max_num_seqs',\n[^\n]*'3'", log.read_text()), "an argument of vLLM's server"
