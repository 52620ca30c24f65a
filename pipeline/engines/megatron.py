"""megatron-core 0.16.1: process groups, the Mixtral model and its initial weights.

The same calls serve one CPU process, `torchrun` on gloo, and GPUs on NCCL; device and layout come from `Execution` and
change no number beyond rounding. No TransformerEngine, no Apex.
"""

import hashlib
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from pipeline.config import Balance
from pipeline.engines import megatron_patches
from pipeline.engines.device import Execution
from pipeline.errors import PipelineError
from pipeline.grid import Point

# Said on every run, of no use to a user: Apex and TransformerEngine are not wanted, the rest is between the libraries.
for message in (
    "Apex is not installed",
    "full scope is deprecated",
    "torch.distributed is disabled",
    "`load_state_dict` is deprecated",
    "Please use DTensor",
):
    warnings.filterwarnings("ignore", message=message)


# Scope of the load-balancing loss -> Megatron's name for it, and the name under which Megatron tracks its value.
# Megatron's third, global_aux_loss, is left out: its token counts are a running mean over the micro-batches so far, so
# that results depend on micro-batch and on data parallel ranks as well, and it weakens the loss by the latter.
BALANCES: dict[Balance, tuple[str, str]] = {
    "micro_batch": ("aux_loss", "load_balancing_loss"),
    "sequence": ("seq_aux_loss", "seq_load_balancing_loss"),
}


def check_layout(point: Point, execution: Execution) -> None:
    """Refuse a parallel layout the point cannot be cut into.

    Raises:
        PipelineError: naming the execution option and the number it has to divide.
    """
    e, recipe = execution, point.pretrain
    parts = {
        "ranks": (e.processes, "tp * pp", e.tp * e.pp),
        "hidden / head_size (attention heads)": (point.heads, "tp", e.tp),
        "model.vocab_size": (point.model.vocab_size, "tp", e.tp),
        "model.sequence_length": (point.model.sequence_length, "tp", e.tp),
        "model.layers": (point.model.layers, "pp", e.pp),
        "experts": (point.experts, "ep", e.ep),
    }
    for what, (whole, name, part) in parts.items():
        if whole % part:
            raise PipelineError(
                f"{point.name}: {what} {whole} is not a multiple of {name} = {part}; change the profile"
            )
    if (e.processes // e.pp) % e.ep:
        raise PipelineError(f"{point.name}: ranks / pp = {e.processes // e.pp} is not a multiple of ep = {e.ep}")
    replicas = e.processes // (e.tp * e.pp)
    if recipe.global_batch % (recipe.micro_batch * replicas):
        raise PipelineError(
            f"{point.name}: global_batch {recipe.global_batch} does not split into micro-batches of "
            f"{recipe.micro_batch} for {replicas} data parallel ranks; use fewer ranks (micro_batch changes numbers)"
        )


@contextmanager
def session(execution: Execution) -> Iterator[torch.device]:
    """Megatron's process groups for this process, and its device. Rank and world size are torchrun's, or 0 of 1."""
    megatron_patches.install(execution.on_gpu)
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if execution.on_gpu else torch.device("cpu")
    if execution.on_gpu:
        torch.cuda.set_device(device)
    backend = "nccl" if execution.on_gpu else "gloo"
    if execution.processes > 1:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=execution.tp,
            pipeline_model_parallel_size=execution.pp,
            expert_model_parallel_size=execution.ep,
            expert_tensor_parallel_size=1,
        )
        # No random number is drawn after the weights: there is no dropout. The tracker only has to exist.
        model_parallel_cuda_manual_seed(1, inference_rng_tracker=not execution.on_gpu, force_reset_rng=True)
        yield device
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


# ----------------------------------------------------------------------------------------------------- the model


def build_model(point: Point, execution: Execution, device: torch.device, dtype: torch.dtype) -> Any:
    """This rank's part of the point's Mixtral as a Megatron `GPTModel`, with its initial weights.

    Paper section 3: RMSNorm, SwiGLU experts, rotary positions, no biases, untied embeddings; routing takes the softmax
    over the chosen k logits (Mixtral's form), without dropping tokens.
    """
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    from pipeline.engines.megatron_modules import block_spec

    m, recipe = point.model, point.pretrain
    config = TransformerConfig(
        num_layers=m.layers,
        hidden_size=point.hidden,
        num_attention_heads=point.heads,
        kv_channels=m.head_size,
        ffn_hidden_size=point.ffn,
        normalization="RMSNorm",
        layernorm_epsilon=m.norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        num_moe_experts=point.experts,
        moe_ffn_hidden_size=point.ffn,
        moe_router_topk=point.topk,
        moe_router_pre_softmax=False,
        moe_router_dtype="fp32",
        moe_router_load_balancing_type=BALANCES[recipe.balance][0],
        moe_aux_loss_coeff=recipe.aux_loss,
        moe_z_loss_coeff=recipe.z_loss or None,
        moe_token_dispatcher_type="alltoall" if execution.on_gpu else "allgather",
        tensor_model_parallel_size=execution.tp,
        pipeline_model_parallel_size=execution.pp,
        expert_model_parallel_size=execution.ep,
        expert_tensor_parallel_size=1,
        sequence_parallel=execution.tp > 1,  # Megatron trains MoE under tensor parallelism only with it
        init_method=_leave,  # initialise() draws the weights
        output_layer_init_method=_leave,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        batch_p2p_sync=execution.on_gpu,
        # Fused kernels of TransformerEngine and Apex.
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
    )
    model = GPTModel(
        config,
        block_spec(config),
        vocab_size=m.vocab_size,
        max_sequence_length=m.sequence_length,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        rotary_base=m.rope_theta,
    ).to(device)
    initialise(model, point)
    return model


def _leave(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@torch.no_grad()
def initialise(model: Any, point: Point) -> None:
    """Draw the initial weights: N(0, init_std), residual-output projections divided by sqrt(2 * layers), norms 1.

    Every matrix (of every expert) has its own generator, seeded by the recipe's seed and the matrix's name in the whole
    model, and each rank cuts its part out of the whole matrix. So the weights do not depend on the parallel layout;
    Megatron's own CPU initialisation gives all expert-parallel ranks the same experts.
    """
    from megatron.core import parallel_state

    tp, tp_rank = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()
    ep_rank = parallel_state.get_expert_model_parallel_rank()

    def fill(target: torch.Tensor, name: str, axis: int | None) -> None:
        shape = [size * tp if i == axis else size for i, size in enumerate(target.shape)]
        std = point.model.init_std
        if name.endswith(("self_attention.linear_proj.weight", "experts.fc2")):
            std /= math.sqrt(2 * point.model.layers)
        digest = hashlib.sha256(f"{point.pretrain.seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
        whole = torch.empty(shape).normal_(0.0, std, generator=generator)
        target.copy_(whole if axis is None else whole.chunk(tp, axis)[tp_rank])

    for name, param in model.named_parameters():
        if param.dim() == 1:
            continue  # norms are made as ones
        if name.startswith("decoder.layers."):
            _, _, here, rest = name.split(".", 3)
            name = f"decoder.layers.{model.decoder.layers[int(here)].layer_number - 1}.{rest}"
        if param.dim() == 3:
            for i, expert in enumerate(param):
                number = ep_rank * len(param) + i
                fill(expert, name.replace(".experts.", f".{number}.experts."), None)
        else:
            fill(param, name, param.partition_dim if getattr(param, "tensor_model_parallel", False) else None)


def count_parameters(model: Any) -> int:
    """Parameters of the whole model, over all ranks."""
    from megatron.core import parallel_state

    tp, ep_dp = (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_expert_data_parallel_world_size(),
    )
    dp = parallel_state.get_data_parallel_world_size()
    share = 0.0
    for param in model.parameters():
        dense = dp if getattr(param, "tensor_model_parallel", False) else dp * tp
        copies = ep_dp if param.dim() == 3 else dense
        share += param.numel() / copies
    total = torch.tensor(share, dtype=torch.float64)
    if dist.get_world_size() > 1:
        total = total.to(next(model.parameters()).device)
        dist.all_reduce(total)
    return round(total.item())
