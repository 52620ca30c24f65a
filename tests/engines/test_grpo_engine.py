"""How verl computes, what it leaves behind, and how its process starts and ends."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from pipeline.engines.verl import outputs, trainer
from pipeline.errors import PipelineError
from pipeline.runtime.execution import Execution
from pipeline.stages.grpo import check_weights_reach_sampler


def test_verl_computes_grpo_advantages_as_in_the_paper() -> None:
    import numpy as np
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    rewards = torch.tensor([1.0, 0, 0, 1, 1, 1, 0, 0, 0, 0])
    tokens, mask = torch.zeros(10, 3), torch.ones(10, 3)
    tokens[:, -1], mask[0, 2] = rewards, 0.0
    tokens[0] = torch.tensor([0, 1.0, 0])
    groups = np.array(["a"] * 5 + ["b"] * 5)
    advantages, _ = compute_grpo_outcome_advantage(tokens, mask, groups)
    by_group = rewards.view(2, 5)
    expected = (by_group - by_group.mean(1, keepdim=True)) / (by_group.std(1, keepdim=True) + 1e-6)
    torch.testing.assert_close(advantages, expected.view(10, 1) * mask)


def test_mixtral_goes_to_vllm_under_the_names_of_its_checkpoint(tmp_path: Path) -> None:
    """In a process of its own: importing the plugin makes verl's platform the CPU for good."""
    code = """
import torch
from safetensors.torch import load_file
from transformers import MixtralConfig, MixtralForCausalLM
from verl.workers.engine.fsdp.utils import unfuse_moe_params
from pipeline.engines.verl.plugin.adapter import vllm_names
from vllm.model_executor.models.mixtral import MixtralModel
config = MixtralConfig(vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_local_experts=4,
                       num_attention_heads=1, num_key_value_heads=1, head_dim=32)
model = MixtralForCausalLM(config)
model.save_pretrained(OUT)
file = load_file(OUT + "/model.safetensors")
renamed = MixtralModel.hf_to_vllm_mapper.orig_to_new_substr  # vLLM itself maps gate_proj to w1 and so on
sent = {}
for name, tensor in vllm_names(unfuse_moe_params(model.state_dict().items(), "mixtral")):
    for old, new in renamed.items():
        name = name.replace(old, new)
    sent[name] = tensor
assert sent.keys() == file.keys(), sorted(sent.keys() ^ file.keys())[:4]
assert all(torch.equal(sent[name], file[name]) for name in file)
print("equal", len(file))
"""
    assert "equal 41" in with_the_plugin(f"OUT = {str(tmp_path)!r}\n{code}", tmp_path)


def test_log_probabilities_of_many_tokens_at_once_are_verls(tmp_path: Path) -> None:
    code = """
import torch
from verl.utils import torch_functional
own = torch_functional.logprobs_from_logits_v2
from pipeline.engines.verl.plugin import log_probs, registry
torch.manual_seed(0)
log_probs.CHUNK_BYTES = 5 * 40 * 4  # five rows at a time, and some left
for kind, shape in ((torch.float32, (33,)), (torch.float32, (3, 7)), (torch.bfloat16, (33,)), (torch.bfloat16, (3, 7))):
    logits, labels, weights = 5 * torch.randn(*shape, 40), torch.randint(0, 40, shape), torch.randn(shape)
    found = []
    for function in (own, torch_functional.logprobs_from_logits):
        leaf = logits.to(kind).requires_grad_()
        values = function(leaf, labels)
        (values * weights).sum().backward()
        found.append((values.detach(), leaf.grad))
    for one, other in zip(*found):
        assert one.dtype == other.dtype and one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 if kind == torch.float32 else 0)
assert torch_functional.logprobs_from_logits_v2 is log_probs.log_probs and own is not log_probs.log_probs
print("equal")
"""
    assert "equal" in with_the_plugin(code, tmp_path)


def test_batches_are_cut_into_the_parts_that_verl_cuts(tmp_path: Path) -> None:
    code = """
import torch
from verl.utils import seqlen_balancing
own = seqlen_balancing.karmarkar_karp
from pipeline.engines.verl.plugin import batches, registry
torch.manual_seed(0)
for parts, equal in ((1, True), (1, False), (3, False), (4, True), (7, False)):
    work = seqlen_balancing.calculate_workload(torch.randint(10, 14, (84,)))
    found = []
    for function in (own, batches.partition):
        seqlen_balancing.karmarkar_karp = function
        found.append(seqlen_balancing.get_seqlen_balanced_partitions(work, parts, equal))
    assert found[0] == found[1], (parts, equal)
print("equal")
"""
    assert "equal" in with_the_plugin(code, tmp_path)


def test_the_samples_of_a_part_are_those_that_verl_selects(tmp_path: Path) -> None:
    code = """
import torch
from tensordict import NonTensorStack, TensorDict
from verl.utils import tensordict_utils as utils
own = utils.index_select_tensor_dict
from pipeline.engines.verl.plugin import batches, registry
assert utils.index_select_tensor_dict is batches.select and own is not batches.select
generator = torch.Generator().manual_seed(0)
lengths = [1, 0, 7, 3, 3, 12]
ragged = utils.nested_tensor_from_tensor_list([torch.randn(n, generator=generator) for n in lengths])
deep = utils.nested_tensor_from_tensor_list([torch.randn(2, n, generator=generator) for n in lengths])
names = NonTensorStack(*"abcdef")
fields = {"ragged": ragged, "ids": (10 * ragged).long(), "deep": deep, "whole": torch.arange(6), "names": names}
batch = TensorDict(fields, batch_size=6)
for numbers in ([4, 0, 2], torch.tensor([5]), [1, 3], [2, 2, 2]):
    one, other = own(batch, numbers), batches.select(batch, numbers)
    assert set(one.keys()) == set(other.keys()) and one.batch_size == other.batch_size
    for name in ("ragged", "ids", "deep"):
        assert one[name].dtype == other[name].dtype and one[name].size(0) == other[name].size(0)
        assert all(torch.equal(a, b) for a, b in zip(one[name].unbind(), other[name].unbind(), strict=True))
        assert torch.equal(one[name].offsets(), other[name].offsets())
    assert one["ragged"].to_padded_tensor(0).equal(other["ragged"].to_padded_tensor(0))
    assert torch.equal(one["whole"], other["whole"]) and list(one["names"]) == list(other["names"])
assert batches.select(None, [0]) is None
print("equal")
"""
    assert "equal" in with_the_plugin(code, tmp_path)


def with_the_plugin(code: str, folder: Path) -> str:
    """What a process says that is one of verl's."""
    env = trainer.environment(folder, folder / "metrics.jsonl", Execution(device="cpu"))
    env |= {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def _log(work: Path, launch: int, steps: list[int], tail: str = "", value: float = 0.0) -> None:
    lines = [json.dumps({"step": step, "data": {"critic/score/mean": value}}) for step in steps]
    (work / f"metrics-{launch:03}.jsonl").write_text("\n".join(lines) + "\n" + tail)


def test_metrics_of_all_launches_become_one_series(tmp_path: Path) -> None:
    _log(tmp_path, 0, [0, 1, 2, 3], tail='{"step": 4, "da', value=0.25)
    _log(tmp_path, 1, [3, 4], value=0.5)
    series = {step: data["critic/score/mean"] for step, data in outputs.read_metrics(tmp_path).items()}
    assert series == {0: 0.25, 1: 0.25, 2: 0.25, 3: 0.5, 4: 0.5}


def test_training_goes_on_from_the_last_save_whose_metrics_were_logged(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        (tmp_path / "checkpoints" / f"global_step_{step}").mkdir(parents=True)
    tracker = tmp_path / "checkpoints" / outputs.TRACKER
    tracker.write_text("6")
    _log(tmp_path, 0, [0, 1, 2, 3, 4, 5])
    assert outputs.resume_step(tmp_path) == 4
    assert tracker.read_text() == "4"
    assert not (tmp_path / "checkpoints" / "global_step_6").exists()


def test_nothing_saved_means_a_start_from_scratch(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / outputs.TRACKER).write_text("")
    assert outputs.resume_step(tmp_path) == 0
    assert not (tmp_path / "checkpoints" / outputs.TRACKER).exists()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({1: 0.001, 2: 0.3}, "step 2: .* differ by 0.3000"),
        ({1: 0.001, 2: None}, r"did not report .* \(steps \[2\]\)"),
        ({}, "did not report"),
    ],
)
def test_a_sampler_without_the_actors_weights_is_refused(steps: dict[int, float | None], message: str) -> None:
    series = {step: {"training/rollout_probs_diff_mean": value} for step, value in steps.items()}
    with pytest.raises(PipelineError, match=message):
        check_weights_reach_sampler({0: {}} | series, limit=0.02)


def test_the_largest_difference_below_the_limit_is_reported() -> None:
    series = {0: {}, 1: {"training/rollout_probs_diff_mean": 0.01}, 2: {"training/rollout_probs_diff_mean": 0.002}}
    assert check_weights_reach_sampler(series, limit=0.02) == 0.01


def test_weights_are_published_as_the_checkpoint_is_laid_out(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint, trained, out = (tmp_path / name for name in ("checkpoint", "trained", "out"))
    for folder in (checkpoint, trained, out):
        folder.mkdir()
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "record.json").write_text("{}")
    save_file({"a": torch.zeros(2, dtype=torch.bfloat16), "b": torch.zeros(3)}, checkpoint / "model.safetensors")
    save_file({"a": torch.ones(2), "b": torch.full((3,), 1 / 3)}, trained / "model-00001-of-00001.safetensors")
    outputs.publish_weights(trained, checkpoint, out)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    made = load_file(out / "model.safetensors")
    assert made["a"].dtype == torch.bfloat16 and made["a"].tolist() == [1, 1]
    assert torch.equal(made["b"], torch.full((3,), 1 / 3)), "fp32 must not be rounded on the way"
    save_file({"a": torch.ones(2)}, trained / "model-00001-of-00001.safetensors")
    with pytest.raises(PipelineError, match="no tensor 'b'"):
        outputs.publish_weights(trained, checkpoint, out)


def test_a_failed_run_shows_the_end_of_its_log_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "verl" / "trainer"
    fake.mkdir(parents=True)
    (fake.parent / "__init__.py").write_text("")
    (fake / "__init__.py").write_text("")
    (fake / "main_ppo.py").write_text(
        "import subprocess\nsubprocess.Popen(['sleep', '600'], start_new_session=True)\nraise ValueError('broken')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    metrics = tmp_path / "metrics-000.jsonl"
    with pytest.raises(PipelineError, match=r"metrics-000.log: verl ended with status 1(?s:.*)ValueError: broken"):
        trainer.train([], tmp_path, metrics, Execution(device="cpu"), lambda step: None)
    folder = trainer.run_folder(tmp_path)
    assert not folder.exists() and trainer.end_run(folder) == 0


def test_runs_of_two_state_folders_share_no_socket(tmp_path: Path) -> None:
    a, b = trainer.run_folder(tmp_path / "a"), trainer.run_folder(tmp_path / "b")
    assert a != b and len(os.fspath(a)) < 30


@pytest.mark.parametrize(("slow", "launches", "ends"), [(1, 2, True), (trainer.STARTS, trainer.STARTS, False)])
def test_a_machine_too_busy_for_ray_is_tried_again(slow, launches, ends, tmp_path, monkeypatch, capsys):
    """Ray gives its own start 30 seconds; nothing has been trained then."""
    made = []

    def launch(settings, work, metrics, execution, progress):
        made.append(work)
        failed = len(made) <= slow
        metrics.with_suffix(".log").write_text(f"Exception: {trainer.SLOW_START}. This could\n" if failed else "")
        return 1 if failed else 0

    monkeypatch.setattr(trainer, "_launch", launch)
    arguments = ([], tmp_path, tmp_path / "metrics-000.jsonl", Execution(device="cpu"), print)
    with nullcontext() if ends else pytest.raises(PipelineError, match="verl ended with status 1; the same command"):
        trainer.train(*arguments)
    assert len(made) == launches and "trying again" in capsys.readouterr().out
