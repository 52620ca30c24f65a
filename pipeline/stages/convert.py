"""Convert a point's Megatron checkpoint to a Hugging Face MixtralForCausalLM, and prove that it is the same model.

    python -m pipeline.stages.convert --scale mini --point d32-E4-k2-66K-A47K [--variant step-001000]

Paper appendix (release of the checkpoints in Hugging Face format). Weights are read from Megatron's global
tensors and saved in the recipe's precision. Then the saved folder is loaded again, as its users will, and its
logits on held-out tokens are compared, in fp32 on the CPU, with those of the Megatron model loaded from the checkpoint.
A difference above `convert.tolerance`, or a weight that is not finite, publishes nothing.

Publishes the model's safetensors and config, the tokenizer, and a generation config that ends at end-of-document.
"""

import shutil
from pathlib import Path
from typing import Any

from pipeline.artifact import RECORD, RECORD_COPY
from pipeline.config import DTYPES
from pipeline.engines.device import Execution
from pipeline.engines.weights import refuse_nonfinite
from pipeline.errors import PipelineError
from pipeline.grid import Point
from pipeline.stage import Context, main


def run(ctx: Context) -> dict[str, Any]:
    from transformers import AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from pipeline.engines.megatron_weights import read_tensors

    disable_progress_bar()
    point, tolerance = ctx.point, ctx.scale.convert.tolerance
    checkpoint = trained_weights(ctx)
    shutil.copytree(
        ctx.inputs["tokenizer"], ctx.out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(RECORD, RECORD_COPY)
    )
    eod = ctx.records["tokenizer"].metrics["eod_id"]
    parameters = save_mixtral(point, read_tensors(checkpoint), AutoTokenizer.from_pretrained(ctx.out), eod, ctx.out)
    refuse_nonfinite(
        ctx.out,
        f"nothing is published. The trained weights ({checkpoint}) are so, or beyond pretrain.dtype: training "
        f"diverged; lower pretrain.lr or raise pretrain.warmup_steps in the grid file",
        lambda path: path.name,
    )
    folders = [ctx.inputs[f"tokenize/{name}"] for name in ctx.scale.data.sources]
    tokens = validation_tokens(folders, ctx.scale.convert.check_tokens, point.model.sequence_length)

    difference, largest = compare(point, checkpoint, ctx.out, tokens)
    ctx.say(f"logits differ by at most {difference:.2e} on {tokens.numel()} tokens (largest logit {largest:.2f})")
    if not difference <= tolerance:  # also when it is NaN
        raise PipelineError(
            f"{point.name}: the converted model's logits differ by {difference:.3g} from Megatron's, beyond "
            f"convert.tolerance {tolerance:g}; nothing is published. Weights that grew large raise the rounding error "
            f"(largest logit {largest:.3g}): if that explains it, raise the tolerance in the grid file"
        )
    return {
        "max_logit_diff": difference,
        "max_abs_logit": largest,
        "tokens_compared": tokens.numel(),
        "parameters": parameters,
    }


def trained_weights(ctx: Context) -> Path:
    """The folder of the last weights, or of those of the step that the job is of.

    Raises:
        PipelineError: the run did not keep that step.
    """
    folder, name = ctx.inputs["pretrain"], ctx.job.variant
    if name is None:
        return folder / "checkpoint"
    if not (folder / "kept" / name).exists():
        kept = ", ".join(ctx.records["pretrain"].metrics.get("kept", {})) or "none"
        raise PipelineError(
            f"{folder}: the finished run did not keep {name} (it kept: {kept}), and only training makes it; take the "
            f"step out of pretrain.keep, or delete the folder to train again, to the same last weights"
        )
    return folder / "kept" / name


def mixtral_weights(point: Point, megatron: dict[str, Any]) -> dict[str, Any]:
    """Megatron's global tensors as MixtralForCausalLM's state dict; views, no copies.

    Megatron interleaves query, key and value by head: rows [head, (q, k, v), head_size]. Experts' fc1 rows are gate
    then up, as in `gate_up_proj`. Both rotate halves of a head, so rotary positions need no permutation.
    """
    layer = "decoder.layers."
    weights = {
        "model.embed_tokens.weight": megatron["embedding.word_embeddings.weight"],
        "model.norm.weight": megatron["decoder.final_layernorm.weight"],
        "lm_head.weight": megatron["output_layer.weight"],
    }
    same = {
        "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
        "self_attn.o_proj.weight": "self_attention.linear_proj.weight",
        "post_attention_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
        "mlp.gate.weight": "mlp.router.weight",
        "mlp.experts.gate_up_proj": "mlp.experts.experts.linear_fc1.weight",
        "mlp.experts.down_proj": "mlp.experts.experts.linear_fc2.weight",
    }
    for i in range(point.model.layers):
        prefix = f"model.layers.{i}."
        weights |= {prefix + ours: megatron[layer + theirs][i] for ours, theirs in same.items()}
        qkv = megatron[layer + "self_attention.linear_qkv.weight"][i]
        by_head = qkv.view(point.heads, 3, point.model.head_size, point.hidden)
        for j, name in enumerate(("q_proj", "k_proj", "v_proj")):
            weights[f"{prefix}self_attn.{name}.weight"] = by_head[:, j].reshape(point.hidden, point.hidden)
    return weights


def save_mixtral(point: Point, megatron: dict[str, Any], tokenizer: Any, eod: int, folder: Path) -> int:
    """Write the model and its configs into `folder`; returns its number of parameters."""
    import torch
    from transformers import GenerationConfig, MixtralConfig, MixtralForCausalLM

    m, recipe = point.model, point.pretrain
    dtype = getattr(torch, DTYPES[recipe.dtype])
    config = MixtralConfig(
        vocab_size=m.vocab_size,
        hidden_size=point.hidden,
        intermediate_size=point.ffn,
        num_hidden_layers=m.layers,
        num_attention_heads=point.heads,
        num_key_value_heads=point.heads,
        head_dim=m.head_size,
        num_local_experts=point.experts,
        num_experts_per_tok=point.topk,
        rms_norm_eps=m.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": m.rope_theta},
        max_position_embeddings=m.sequence_length,
        router_aux_loss_coef=recipe.aux_loss,
        initializer_range=m.init_std,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=eod,
        dtype=dtype,
    )
    with torch.device("meta"):  # no memory: the checkpoint's tensors become the parameters
        model = MixtralForCausalLM(config).to(dtype)
    weights = {name: tensor.to(dtype) for name, tensor in mixtral_weights(point, megatron).items()}
    model.load_state_dict(weights, assign=True)
    model.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=eod, pad_token_id=eod)
    model.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def validation_tokens(folders: list[Path], count: int, sequence_length: int) -> Any:
    """About `count` held-out tokens, the same share of each source, as rows [n, s] of at most one sequence."""
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    streams = []
    for folder in folders:
        dataset, parts, wanted = IndexedDataset(str(folder / "validation")), [], -(-count // len(folders))
        for document in range(len(dataset)):
            parts.append(dataset[document])
            if sum(map(len, parts)) >= wanted:
                break
        streams.append(np.concatenate(parts)[:wanted])
    stream = np.concatenate(streams)[:count].astype(np.int64)
    row = min(sequence_length, len(stream))
    return torch.from_numpy(stream[: len(stream) // row * row].reshape(-1, row))


def compare(point: Point, checkpoint: Path, folder: Path, tokens: Any) -> tuple[float, float]:
    """Largest |difference| of the logits of the Megatron checkpoint and the saved folder, and the largest |logit|.

    Args:
        tokens: [n, s] ids.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from pipeline.engines import megatron
    from pipeline.engines.megatron_weights import load_weights

    cpu = Execution(device="cpu")
    with torch.inference_mode(), megatron.session(cpu) as device:
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        ours = megatron.build_model(point, cpu, device, torch.float32).eval()
        load_weights(ours, checkpoint)
        difference, largest = torch.zeros(()), torch.zeros(())
        for row in tokens.split(1):
            a = ours(row, torch.arange(row.shape[1])[None], None)
            b = theirs(row).logits
            difference = torch.maximum(difference, (a - b).abs().max())  # unlike max(), keeps a NaN
            largest = torch.maximum(largest, a.abs().max())
    return difference.item(), largest.item()


if __name__ == "__main__":
    main("convert", run, __doc__)
