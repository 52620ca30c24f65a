"""Conversion: the published Mixtral is the trained model, by plain transformers and by arithmetic written out here."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts.record import RECORD, Record
from pipeline.dag.dag import Dag, Job
from pipeline.errors import PipelineError
from pipeline.runner import execute
from pipeline.runtime.execution import Execution, prepare_environment
from tests.helpers.tokens import EOD, first_point, pretrain_job, toy_dag, upstream

CPU = Execution(device="cpu")
prepare_environment(CPU)


def trained(folder: Path, **changes: Any) -> tuple[Dag, Path]:
    """A toy scale with its one point pre-trained: the scale, and the results folder."""
    from pipeline.stages.pretrain import run

    dag, results = toy_dag(folder / "config", hidden=64, micro_batch=4, **changes), folder / "results"
    upstream(dag, results)
    execute(dag, pretrain_job(dag), run, results, CPU)
    return dag, results


def convert(dag: Dag, results: Path) -> tuple[Record, Path]:
    from pipeline.stages.convert import run

    job = Job("convert", dag.name, point=first_point(dag))
    return execute(dag, job, run, results, CPU), results / job.folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dag, Path]:
    return trained(tmp_path_factory.mktemp("fp32"))


def test_converted_logits_agree_on_held_out_tokens_of_every_source(pretrained: tuple[Dag, Path]) -> None:
    record, _ = convert(*pretrained)
    assert record.metrics["tokens_compared"] == 256
    assert 0 < record.metrics["max_logit_diff"] < 1e-4
    assert record.metrics["max_abs_logit"] > 1
    assert record.metrics["parameters"] == pretrained[0].points[first_point(pretrained[0])].total_params


def test_converted_folder_is_complete_for_its_users(pretrained: tuple[Dag, Path]) -> None:
    from transformers import AutoTokenizer, GenerationConfig, MixtralConfig

    _, folder = convert(*pretrained)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("w1 w2", add_special_tokens=False)["input_ids"] == [1, 2]
    assert GenerationConfig.from_pretrained(folder).eos_token_id == EOD == tokenizer.eos_token_id
    config = MixtralConfig.from_pretrained(folder)
    assert config.vocab_size == pretrained[0].scale.model.vocab_size > len(tokenizer)
    assert config.pad_token_id is None  # a padding row of the embedding would get no gradient in later training


def test_a_bf16_model_is_published_in_bf16_and_checked_in_fp32(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    record, folder = convert(*trained(tmp_path, dtype="bf16", steps=8))
    assert record.metrics["max_logit_diff"] < 1e-4
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}


def test_a_conversion_that_changes_one_tensor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.models import mixtral

    honest = mixtral.hf_weights

    def swapped(shape: Any, megatron: dict[str, Any]) -> dict[str, Any]:
        weights = honest(shape, megatron)
        name = "model.layers.1.mlp.experts.gate_up_proj"
        return weights | {name: weights[name].roll(shape.ffn, dims=1)}  # up rows where gate rows belong

    dag, results = trained(tmp_path, steps=8)
    monkeypatch.setattr(mixtral, "hf_weights", swapped)
    with pytest.raises(PipelineError, match=r"differ by .* beyond convert\.tolerance 0\.0001; nothing is published"):
        convert(dag, results)
    assert not (results / Job("convert", dag.name, point=first_point(dag)).folder / RECORD).exists()


def test_a_training_step_is_the_one_the_formulas_describe(pretrained: tuple[Dag, Path], tmp_path: Path) -> None:
    """Losses and gradient norm of one step, against transformers' model and the formulas on its router logits.

    Load balance of a micro-batch: E / (k T^2) sum_e (sum_t p_te) n_e, p the softmax over all E logits, n_e the tokens
    routed to e (Switch Transformers, eq. 4, for k experts a token). z-loss: mean_t logsumexp_e(logits)^2.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipeline.engines.megatron import model as megatron
    from pipeline.engines.megatron.data import build_datasets
    from pipeline.engines.megatron.trainer import Trainer
    from pipeline.engines.megatron.weights import read_tensors, save_weights
    from pipeline.stages.convert import save_model

    dag, results = pretrained
    point = dag.points[first_point(dag)]
    recipe = point.pretrain
    tokenizer = AutoTokenizer.from_pretrained(results / Job("tokenizer", dag.name).folder)
    sources = {results / Job("tokenize", dag.name, source=s).folder: w for s, w in dag.scale.data.sources.items()}
    with megatron.session(CPU) as device:
        model = megatron.build_model(point, CPU, device, torch.float32)
        (tmp_path / "initial").mkdir()
        save_weights(model, tmp_path / "initial")
        training, _ = build_datasets(point, sources, 64, EOD, tmp_path / "index")
        samples = [training[i] for i in range(recipe.global_batch)]
        result = Trainer(model, point).step(training, 0)

    save_model(point, read_tensors(tmp_path / "initial"), tokenizer, EOD, tmp_path / "hf")
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    routed: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # logits [T, E], weights and experts [T, k]
    for layer in hf.model.layers:
        layer.mlp.gate.register_forward_hook(lambda _gate, _inputs, outputs: routed.append(outputs))
    micro_batches = recipe.global_batch // recipe.micro_batch
    loss = torch.zeros(())
    for i in range(0, recipe.global_batch, recipe.micro_batch):
        tokens, labels = (
            torch.stack([s[key] for s in samples[i : i + recipe.micro_batch]]) for key in ("tokens", "labels")
        )
        loss = loss + torch.nn.functional.cross_entropy(hf(tokens).logits.flatten(0, 1), labels.flatten())
    balance, z_loss = torch.zeros(()), torch.zeros(())
    for logits, weights, experts in routed:
        best, indices = logits.topk(point.topk)
        assert torch.equal(indices, experts)
        torch.testing.assert_close(best.softmax(-1), weights)  # over the chosen k
        counts = torch.bincount(indices.flatten(), minlength=point.experts)
        scale = point.experts / (point.topk * len(logits) ** 2)
        balance = balance + scale * (logits.softmax(-1).sum(0) * counts).sum()
        z_loss = z_loss + logits.logsumexp(-1).square().mean()
    ((loss + recipe.aux_loss * balance + recipe.z_loss * z_loss) / micro_batches).backward()
    norm = torch.stack([p.grad.norm() for p in hf.parameters()]).norm()

    assert len(routed) == 4 * 2  # micro-batches x layers
    assert result.loss == pytest.approx(loss.item() / 4, abs=1e-5)
    assert result.load_balance == pytest.approx(balance.item() / 8, abs=1e-5)
    assert result.z_loss == pytest.approx(z_loss.item() / 8, abs=1e-5)
    assert result.grad_norm == pytest.approx(norm.item(), rel=1e-4)
