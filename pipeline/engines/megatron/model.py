"""megatron-core 0.16.1: process groups, a point's model and its initial weights.

The same calls serve one CPU process, `torchrun` on gloo, and GPUs on NCCL; device and layout come from `Execution` and
change no number beyond rounding. No TransformerEngine, no Apex. The letters of shapes are those of `models/shape.py`.
"""

import hashlib
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from pipeline.config.layouts import Layout
from pipeline.config.recipes import Balance
from pipeline.dag.point import Point
from pipeline.engines.megatron import patches
from pipeline.errors import PipelineError
from pipeline.planning.cpu import cores
from pipeline.planning.gpu_memory import misfit
from pipeline.runtime.execution import Execution

# Printed on every run and of no use to a user: Apex and TransformerEngine are left out on purpose, and the rest is
# between the libraries.
for message in (
    "Apex is not installed",
    "full scope is deprecated",
    "torch.distributed is disabled",
    "`load_state_dict` is deprecated",
    "Please use DTensor",
    "The .grad attribute of a Tensor that is not a leaf",
    r"barrier\(\): using the device under current context",
):
    warnings.filterwarnings("ignore", message=message)


# Scope of the load-balancing loss -> Megatron's name for it, and the name under which Megatron tracks its value.
# Megatron's third, global_aux_loss, is left out: its token counts are a running mean over the micro-batches so far, so
# that results depend on the micro-batch and on the number of data parallel ranks, which also weaken the loss.
BALANCES: dict[Balance, tuple[str, str]] = {
    "micro_batch": ("aux_loss", "load_balancing_loss"),
    "sequence": ("seq_aux_loss", "seq_load_balancing_loss"),
}


def check_layout(point: Point, execution: Execution) -> None:
    """Refuse a parallel layout that the point cannot be cut into.

    Raises:
        PipelineError: naming the size and what it has to be a multiple of.
    """
    e = execution
    # Unchecked, so that a layout that is wrong in itself is refused here, by the names that a job's options have.
    layout = Layout.model_construct(nodes=e.nodes, gpus_per_node=e.ranks, tp=e.tp, pp=e.pp, ep=e.ep)
    if reason := misfit(point, layout):
        raise PipelineError(f"{point.name}: {reason}; change nodes, ranks, tp, pp or ep in the profile")


@contextmanager
def session(execution: Execution) -> Iterator[torch.device]:
    """Megatron's process groups for this process, and its device. Rank and world size are torchrun's, or 0 of 1."""
    patches.install(execution.on_gpu)
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
        # Megatron wants a tracker of CUDA's generators, although without dropout no random number is drawn after the
        # weights. The one for inference is a stub, which a CPU can have too.
        model_parallel_cuda_manual_seed(1, inference_rng_tracker=not execution.on_gpu, force_reset_rng=True)
        yield device
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


# ----------------------------------------------------------------------------------------------------- the model


def build_model(
    point: Point, execution: Execution, device: torch.device, dtype: torch.dtype, drawn: bool = True
) -> Any:
    """This rank's part of the point's model as a Megatron `GPTModel`, with its initial weights.

    Without them (`drawn` is False) matrices hold whatever is in memory, for saved weights to take their place.

    What makes the function is stated by the point's architecture (pipeline/models); the recipe adds the router's losses
    (paper section 3), and the execution how the model is cut and moved. No dropout, and no tokens are dropped.

    Its forward takes ids [B, S] and positions [B, S] on every pipeline stage, and gives on the last one the logits
    [B, S, V / tp], or with labels [B, S] the loss of each token [B, S]; between stages [S / tp, B, D] is sent.
    """
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    from pipeline.engines.megatron import fast, gpu
    from pipeline.engines.megatron.modules import block_spec

    architecture, shape, recipe = point.architecture, point.shape, point.pretrain
    values = architecture.megatron_config(shape)
    values["activation_func"] = getattr(F, values["activation_func"])
    arguments = architecture.megatron_model(shape)
    config = TransformerConfig(
        **values,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        # Routing in fp32, whatever the model's precision: from 32 experts on Megatron warns of instability without it.
        moe_router_dtype="fp32",
        moe_router_load_balancing_type=BALANCES[recipe.balance][0],
        moe_aux_loss_coeff=recipe.aux_loss,
        moe_z_loss_coeff=recipe.z_loss or None,  # Megatron divides by the coefficient where it is not None
        # alltoall sends a token only to the ranks of its experts, but copies on CUDA streams, which a CPU has not; with
        # allgather every rank gets all tokens. No token is dropped in either: `moe_expert_capacity_factor` stays None.
        moe_token_dispatcher_type="alltoall" if execution.on_gpu else "allgather",
        tensor_model_parallel_size=execution.tp,
        pipeline_model_parallel_size=execution.pp,
        expert_model_parallel_size=execution.ep,
        expert_tensor_parallel_size=1,  # by default it would be tp; one expert is small enough to be held whole
        sequence_parallel=execution.tp > 1,  # Megatron refuses to train MoE under tensor parallelism without it
        init_method=_leave,  # initialise() draws the weights
        output_layer_init_method=_leave,
        params_dtype=dtype,
        pipeline_dtype=dtype,  # of the activations that pipeline stages send each other; there is no default
        bf16=dtype == torch.bfloat16,
        # Where head and loss are not in chunks (gpu.py), Megatron's fused loss, which rounds gradients to bf16.
        cross_entropy_loss_fusion=execution.on_gpu and dtype == torch.bfloat16,
        batch_p2p_sync=execution.on_gpu,  # torch.cuda.synchronize() after they are sent; a CPU has nothing to wait for
        # The fused kernels, which need TransformerEngine or Apex, are all off by default, and stay off.
    )
    if fast.fits(values | arguments, config, device):
        model_class, spec = fast.FastGPTModel, fast.fast_spec(config)
    elif gpu.uses_gpu(device):
        model_class = gpu.ChunkedModel if gpu.head_fits(arguments, config) else GPTModel
        spec = gpu.gpu_spec(config, arguments)
    else:
        model_class, spec = GPTModel, block_spec(config)
    model = model_class(
        config,
        spec,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        **arguments,
    ).to(device)
    if drawn:
        initialise(model, point, threads=cores() // execution.ranks or 1 if execution.on_gpu else 1)
    return model


def _leave(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@torch.no_grad()
def initialise(model: Any, point: Point, threads: int = 1) -> None:
    """Draw the initial weights: matrices from N(0, std) with the architecture's `initial_std`, norms are 1.

    Every matrix (of every expert) has its own generator, seeded by the recipe's seed and the matrix's name in the whole
    model, and each rank cuts its part out of the whole matrix. So the weights do not depend on the parallel layout;
    Megatron's own initialisation on CPUs gives all expert-parallel ranks the same experts.
    """
    from megatron.core import parallel_state

    tp, tp_rank = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()
    ep_rank = parallel_state.get_expert_model_parallel_rank()
    inference = torch.is_inference_mode_enabled()

    def fill(target: torch.Tensor, name: str, axis: int | None) -> None:
        with torch.inference_mode(inference), torch.no_grad():  # which each thread has to say for itself
            whole_shape = [size * tp if i == axis else size for i, size in enumerate(target.shape)]
            digest = hashlib.sha256(f"{point.pretrain.seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
            std = point.architecture.initial_std(point.shape, name)
            whole = torch.empty(whole_shape).normal_(0.0, std, generator=generator)
            target.copy_(whole if axis is None else whole.chunk(tp, axis)[tp_rank])

    parts: list[tuple[torch.Tensor, str, int | None]] = []
    for name, param in model.named_parameters():
        if param.dim() == 1:
            continue  # norms are made as ones
        if name.startswith("decoder.layers."):  # numbered within the pipeline stage; layer_number is that in the model
            _, _, local, rest = name.split(".", 3)
            name = f"decoder.layers.{model.decoder.layers[int(local)].layer_number - 1}.{rest}"
        if param.dim() == 3:  # stacked experts [E / ep, ...]
            for i, expert in enumerate(param, start=ep_rank * len(param)):
                parts.append((expert, name.replace(".experts.", f".{i}.experts."), None))
        else:
            parts.append((param, name, param.partition_dim if getattr(param, "tensor_model_parallel", False) else None))
    with ThreadPoolExecutor(threads) as pool:  # each matrix by one thread, as PyTorch draws
        list(pool.map(fill, *zip(*parts, strict=True)))


def count_parameters(model: Any) -> int:
    """Parameters of the whole model, over all ranks."""
    from megatron.core import parallel_state

    tp = parallel_state.get_tensor_model_parallel_world_size()
    replicas = parallel_state.get_data_parallel_world_size()
    expert_replicas = parallel_state.get_expert_data_parallel_world_size()
    share = 0.0  # each rank counts its part of a parameter's copies, so that the sum counts it once
    for param in model.parameters():
        if param.dim() == 3:  # stacked experts
            copies = expert_replicas
        elif getattr(param, "tensor_model_parallel", False):
            copies = replicas
        else:
            copies = replicas * tp
        share += param.numel() / copies
    total = torch.tensor(share, dtype=torch.float64)
    if dist.get_world_size() > 1:
        total = total.to(next(model.parameters()).device)
        dist.all_reduce(total)
    return round(total.item())
