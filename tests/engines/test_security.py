"""No code comes from a checkpoint, whatever its configuration says."""

import json
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.config.recipes import Grpo
from pipeline.engines import vllm as engine
from tests.helpers.checkpoints import Lab

EVIL = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import MixtralConfig as Config, MixtralForCausalLM as Model
"""


def test_code_that_comes_with_a_checkpoint_is_not_run(lab: Lab, tmp_path: Path) -> None:
    """By vLLM, nor by transformers as the conversion's check and verl use it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from vllm import LLM

    folder, mark = tmp_path / "checkpoint", tmp_path / "was-run"
    shutil.copytree(lab.checkpoint, folder)
    (folder / "evil.py").write_text(EVIL.format(mark=str(mark)))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    with engine.serving(LLM, folder, engine.options("fp32", 64, 0, lab.context("decode").execution)) as llm:
        assert llm.generate(["n1 c1 :"], use_tqdm=False)
    assert AutoTokenizer.from_pretrained(folder) and AutoModelForCausalLM.from_pretrained(folder)
    assert not mark.exists()


def test_nothing_asks_for_remote_code_or_loads_a_pickle_itself() -> None:
    root = Path(__file__).parents[2]
    for path in (root / "pipeline").rglob("*.py"):
        text = path.read_text()
        for refusal in ("trust_remote_code=False", "trust_remote_code: False"):
            text = text.replace(refusal, "")
        if path.name == "verl_keys.py":  # which refuses verl's settings of that name (the next test)
            text = text.replace('REMOTE_CODE = "trust_remote_code"', "")
        assert "trust_remote_code" not in text, path
        assert "torch.load(" not in text and "pickle" not in text.split('"""')[-1], path


@pytest.mark.parametrize("section", ["data", "actor_rollout_ref.model", "actor_rollout_ref.rollout.engine_kwargs.vllm"])
def test_no_recipe_can_ask_for_remote_code(section: str) -> None:
    recipe = {
        "task": "sums",
        "steps": 1,
        "prompts": 1,
        "mini_batch": 1,
        "lr": 1e-3,
        "extra": {f"{section}.trust_remote_code": True},
    }
    with pytest.raises(ValidationError, match="would run code that comes with a checkpoint"):
        Grpo.model_validate(recipe)
