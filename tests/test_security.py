"""No code comes from a checkpoint, whatever its configuration says."""

import json
import shutil
from pathlib import Path

from pipeline.engines import vllm as engine
from tests.checkpoints import Lab

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
    root = Path(__file__).parents[1]
    for path in (root / "pipeline").rglob("*.py"):
        text = path.read_text()
        assert "trust_remote_code" not in text.replace("trust_remote_code=False", "").replace(
            "trust_remote_code: False", ""
        ), path
        assert "torch.load(" not in text and "pickle" not in text.split('"""')[-1], path
