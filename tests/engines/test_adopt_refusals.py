"""Adopting a finished checkpoint: what is refused, and how the message says it."""

import json
import re
import shutil

import pytest

from pipeline.artifacts.record import sha256_file
from pipeline.errors import PipelineError
from tests.helpers.adopting import NAME, adopted


def test_a_wrong_digest_is_refused_with_the_file_and_both_digests(lab, source, tmp_path):
    name = "model-00003-of-00005.safetensors"
    actual, expected = sha256_file(source / name), "0" * 64
    with pytest.raises(PipelineError, match=f"{name}: SHA-256 is {actual}, and adopt.sha256 says {expected}; "):
        adopted(lab, tmp_path, {"path": str(source), "sha256": {name: expected}})
    assert not list((tmp_path / "results" / "smoke").rglob("record.json"))
    with pytest.raises(PipelineError, match="modle.safetensors: .* not a file that is adopted"):
        adopted(lab, tmp_path, {"path": str(source), "sha256": {"modle.safetensors": expected}})


def test_another_points_configuration_is_refused_field_by_field(lab, source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    changed = {"num_experts_per_tok": 4, "rope_theta": 5e5, "sliding_window": 64, "tie_word_embeddings": True}
    (source / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(PipelineError) as error:
        adopted(lab, tmp_path, {"path": str(source)})
    heading, columns, *lines = str(error.value).splitlines()
    assert heading == f"{source}: config.json is not that of point {NAME}:"
    assert columns.split() == ["point", "says", "checkpoint", "has"]
    assert [line.split() for line in lines] == [
        ["num_experts_per_tok", "2", "4"],
        ["rope_theta", "1000000.0", "500000.0"],
        ["tie_word_embeddings", "False", "True"],
        ["sliding_window", "None", "64"],
    ]


def test_another_architecture_or_scaled_positions_are_refused(lab, source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(PipelineError, match=r"architectures +\['MixtralForCausalLM'\] +\['LlamaForCausalLM'\]"):
        adopted(lab, tmp_path, {"path": str(source)})
    scaled = config | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    (source / "config.json").write_text(json.dumps(scaled))
    with pytest.raises(PipelineError, match=r"rope_type +default +linear"):
        adopted(lab, tmp_path, {"path": str(source)})


def test_tensors_that_are_not_the_points_are_refused_with_their_total(lab, released, source, tmp_path):
    """A checkpoint of 8 experts whose configuration claims 4."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = json.loads((source / "config.json").read_text())
    for path in source.glob("model*"):
        path.unlink()
    model = MixtralForCausalLM(MixtralConfig.from_dict(config | {"num_local_experts": 8}))
    model.save_pretrained(source)
    shutil.copyfile(released / "config.json", source / "config.json")
    with pytest.raises(PipelineError) as error:
        adopted(lab, tmp_path, {"path": str(source)})
    text = str(error.value)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert f"{source}: the set of tensors is not that of point {NAME}" in text
    assert re.search(rf"\n  parameters +49,568 +{total:,}\n", text)
    assert "model.layers.0.block_sparse_moe.gate.weight" in text and "[4, 32]" in text and "[8, 32]" in text
    assert "no such tensor" in text and "more tensors" in text


def test_pickled_weights_are_refused_with_the_reason(lab, source, tmp_path):
    for path in source.glob("model*"):
        path.unlink()
    (source / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(PipelineError, match="pytorch_model.bin: pickled weights, and loading a pickle runs"):
        adopted(lab, tmp_path, {"path": str(source)})


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_checkpoint_is_refused(lab, source, tmp_path, name):
    config = json.loads((source / name).read_text()) | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    (source / name).write_text(json.dumps(config))
    with pytest.raises(PipelineError, match=f"{name}: `auto_map` .*evil.Model.* never run"):
        adopted(lab, tmp_path, {"path": str(source)})


def test_a_truncated_shard_and_a_false_index_are_named(lab, source, tmp_path):
    index = source / "model.safetensors.index.json"
    before = index.read_text()
    index.write_text(
        before.replace('"model.embed_tokens.weight": "model-00002', '"model.embed_tokens.weight": "model-00001')
    )
    with pytest.raises(PipelineError, match="says 'model.embed_tokens.weight' is in model-00001.*it is in model-00002"):
        adopted(lab, tmp_path, {"path": str(source)})
    index.write_text(before.replace("model-00001-of", "../model-00001-of"))
    with pytest.raises(PipelineError, match="names files that the checkpoint does not have: ../model-00001"):
        adopted(lab, tmp_path, {"path": str(source)})
    index.write_text(before)
    shard = source / "model-00002-of-00005.safetensors"
    shard.write_bytes(shard.read_bytes()[:-50])
    with pytest.raises(PipelineError, match=f"{shard.name}: truncated or damaged"):
        adopted(lab, tmp_path, {"path": str(source)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_and_named(lab, source, tmp_path, value):
    from safetensors.torch import load_file, save_file

    shard = source / "model-00003-of-00005.safetensors"
    tensors = load_file(shard)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[:2] = value
    save_file(tensors, shard, metadata={"format": "pt"})
    said = f"{source}: {shard.name}: tensor '{name}' has 2 values that are NaN or infinite; fetch it again"
    with pytest.raises(PipelineError, match=re.escape(said)):
        adopted(lab, tmp_path, {"path": str(source)})
