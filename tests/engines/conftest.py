"""A checkpoint as the paper's are released, for the tests that adopt one."""

import json
import shutil
from pathlib import Path

import pytest

from tests.helpers.checkpoints import Lab


@pytest.fixture(scope="session")
def released(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as the paper's are released: shards with an index, a tokenizer without a chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    folder = tmp_path_factory.mktemp("released")
    model = AutoModelForCausalLM.from_pretrained(lab.checkpoint)
    tokens = AutoTokenizer.from_pretrained(lab.checkpoint)
    tokens.chat_template = None
    model.generation_config = GenerationConfig(bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id)
    model.save_pretrained(folder, max_shard_size="60KB")
    tokens.save_pretrained(folder)
    (folder / "README.md").write_text("A model card.\n")
    config = json.loads((folder / "config.json").read_text())  # as transformers 4 wrote it
    config |= {"rope_theta": config.pop("rope_parameters")["rope_theta"], "torch_dtype": config.pop("dtype")}
    del config["head_dim"]
    (folder / "config.json").write_text(json.dumps(config))
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def source(released: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may break."""
    return Path(shutil.copytree(released, tmp_path / "source"))
