"""Convert a point's Megatron checkpoint to Hugging Face's format, and prove that it is the same model.

    python -m pipeline.stages.convert --scale mini --point d32-E8-k2-107K-A51K [--variant step-001000]

Paper appendix (release of the checkpoints in Hugging Face format). Weights are read from Megatron's global tensors,
renamed as the point's architecture says (pipeline/models) and saved in the recipe's precision. Then the saved folder is
loaded again, as its users will, and its logits on held-out tokens are compared, in fp32 on the CPU, with those of the
Megatron model loaded from the checkpoint. A difference above `convert.tolerance`, or a weight that is not finite,
publishes nothing.

Publishes the model's safetensors and config, the tokenizer, and a generation config that ends at end-of-document. The
letters of shapes are those of `models/shape.py`.
"""

import shutil
from pathlib import Path
from typing import Any

from pipeline.artifacts.record import RECORD, RECORD_COPY
from pipeline.config.recipes import DTYPES
from pipeline.dag.point import Point
from pipeline.data.results import PretrainMetrics, TokenizerMetrics
from pipeline.errors import PipelineError
from pipeline.models.weights import refuse_nonfinite
from pipeline.runner import Context, main
from pipeline.runtime.execution import Execution


def run(ctx: Context) -> dict[str, Any]:
    from transformers import AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from pipeline.engines.megatron.weights import read_tensors

    disable_progress_bar()
    point, tolerance = ctx.point, ctx.scale.convert.tolerance
    checkpoint = trained_weights(ctx)
    shutil.copytree(
        ctx.inputs["tokenizer"], ctx.out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(RECORD, RECORD_COPY)
    )
    eod = TokenizerMetrics.of(ctx.records["tokenizer"]).eod_id
    parameters = save_model(point, read_tensors(checkpoint), AutoTokenizer.from_pretrained(ctx.out), eod, ctx.out)
    refuse_nonfinite(
        ctx.out,
        f"nothing is published. The trained weights ({checkpoint}) are not finite, or too large for pretrain.dtype: "
        f"training diverged; lower pretrain.lr or raise pretrain.warmup_steps in the grid file",
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
    """The folder of the last weights, or of those of the step that the job converts.

    Raises:
        PipelineError: the run did not keep that step.
    """
    folder, name = ctx.inputs["pretrain"], ctx.job.variant
    if name is None:
        return folder / "checkpoint"
    if not (folder / "kept" / name).exists():
        kept = ", ".join(PretrainMetrics.of(ctx.records["pretrain"]).kept) or "none"
        raise PipelineError(
            f"{folder}: the finished run did not keep {name} (it kept: {kept}), and only training makes it; take the "
            f"step out of pretrain.keep, or delete the folder to train again, to the same last weights"
        )
    return folder / "kept" / name


def save_model(point: Point, megatron: dict[str, Any], tokenizer: Any, eod: int, folder: Path) -> int:
    """Write the model and its configs into `folder`.

    Args:
        megatron: global tensors by name, of the shapes of the architecture's `megatron_tensors`.
        eod: id of the end-of-document token, which ends what the model generates.

    Returns:
        The model's number of parameters.
    """
    import torch
    import transformers

    architecture, shape = point.architecture, point.shape
    dtype = getattr(torch, DTYPES[point.pretrain.dtype])
    config = transformers.CONFIG_MAPPING[architecture.HF_TYPE](
        **architecture.hf_config(shape),
        router_aux_loss_coef=point.pretrain.aux_loss,
        initializer_range=shape.init_std,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=eod,
        dtype=dtype,
    )
    with torch.device("meta"):  # no memory: the checkpoint's tensors become the parameters
        model = getattr(transformers, architecture.HF_CLASS)(config).to(dtype)
    weights = {name: tensor.to(dtype) for name, tensor in architecture.hf_weights(shape, megatron).items()}
    model.load_state_dict(weights, assign=True)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=eod, pad_token_id=eod
    )
    model.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def validation_tokens(folders: list[Path], count: int, sequence_length: int) -> Any:
    """About `count` held-out tokens, the same number from each source.

    Returns:
        ids [B, S'], in rows of at most one sequence (S' <= S); tokens that do not fill a row are left out.
    """
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    streams = []
    for folder in folders:
        dataset, documents, share = IndexedDataset(str(folder / "validation")), [], -(-count // len(folders))
        for i in range(len(dataset)):
            documents.append(dataset[i])
            if sum(map(len, documents)) >= share:
                break
        streams.append(np.concatenate(documents)[:share])
    stream = np.concatenate(streams)[:count].astype(np.int64)
    row = min(sequence_length, len(stream))
    return torch.from_numpy(stream[: len(stream) // row * row].reshape(-1, row))


def compare(point: Point, checkpoint: Path, folder: Path, tokens: Any) -> tuple[float, float]:
    """Largest |difference| of the logits of the Megatron checkpoint and the saved folder, and the largest |logit|.

    Args:
        tokens: ids [B, S'].
    """
    import torch
    from transformers import AutoModelForCausalLM

    from pipeline.engines.megatron import model as megatron
    from pipeline.engines.megatron.weights import load_weights

    cpu = Execution(device="cpu")
    with torch.inference_mode(), megatron.session(cpu) as device:
        converted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        trained = megatron.build_model(point, cpu, device, torch.float32).eval()
        load_weights(trained, checkpoint)
        difference, largest = torch.zeros(()), torch.zeros(())
        for row in tokens.split(1):  # [1, S']: the logits of one row at a time, [1, S', V]
            expected = trained(row, torch.arange(row.shape[1])[None], None)
            actual = converted(row).logits
            difference = torch.maximum(difference, (expected - actual).abs().max())  # unlike max(), keeps a NaN
            largest = torch.maximum(largest, expected.abs().max())
    return difference.item(), largest.item()


if __name__ == "__main__":
    main("convert", run, __doc__)
