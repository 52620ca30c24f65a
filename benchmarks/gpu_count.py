"""What a micro-batch of pre-training does on a GPU, counted without one.

    python -m benchmarks.gpu_count              counts of a layer and of head and loss, ours and Megatron's
    python -m benchmarks.gpu_count --memory     peak memory of every layout of scale math, and `plan`'s

The model is built as on a GPU, on PyTorch's `meta` device, whose tensors have sizes and no values, and every operator
of forward and backward pass is seen by its dispatch. Counted are operators that run a kernel (not views, not
allocations), the bytes of their inputs and outputs, the times that the host waits for the GPU, and bytes that are
alive. What torch.compile makes one kernel counts as one, attention is flash attention, norms are PyTorch's fused ones,
and each expert gets as many tokens as any other. Nothing here is a time.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from pipeline.config.layouts import Layout, Layouts
from pipeline.dag.dag import Dag
from pipeline.dag.point import Point
from pipeline.runtime.execution import Execution, prepare_environment

prepare_environment(Execution(device="cpu"))

import torch  # noqa: E402 (after the environment is set)
import torch.distributed as dist  # noqa: E402

from benchmarks.counting import META, Count, Counting, pretending  # noqa: E402

# --------------------------------------------------------------------------------------------------- a micro-batch


@contextmanager
def ranks(layout: Layout, last: bool) -> Iterator[None]:
    """The first or last of the fewest ranks that a layout can have, with groups that send nothing."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    world = layout.tp * layout.pp * layout.ep
    dist.init_process_group("fake", store=FakeStore(), rank=world - 1 if last else 0, world_size=world)
    try:
        parallel_state.initialize_model_parallel(
            layout.tp,
            layout.pp,
            expert_model_parallel_size=layout.ep,
            expert_tensor_parallel_size=1,
            create_gloo_process_groups=False,
        )
        model_parallel_cuda_manual_seed(1, inference_rng_tracker=True, force_reset_rng=True)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def micro_batch(point: Point, layout: Layout, last: bool = True, in_flight: int = 1, stock: bool = False) -> Count:
    """Count forward and backward pass of one micro-batch on a rank, without what is alive around them.

    Args:
        last: the last pipeline stage, which has the head, or the first; without pipeline stages they are one.
        in_flight: micro-batches whose forward pass is over when the first backward pass begins.
        stock: with Megatron's own dispatch, routing, rotation and loss in place of those of engines/megatron/gpu.py.
    """
    from megatron.core.transformer.moe import moe_utils

    from pipeline.config.recipes import DTYPES
    from pipeline.engines.megatron import gpu
    from pipeline.engines.megatron import model as megatron

    recipe, shape = point.pretrain, point.shape
    tokens = recipe.micro_batch * shape.sequence_length // layout.tp
    counting = Counting(tokens * shape.topk)
    execution = Execution(
        device="cuda", ranks=layout.tp * layout.pp * layout.ep, tp=layout.tp, pp=layout.pp, ep=layout.ep
    )
    moe_utils.get_moe_layer_wise_logging_tracker().clear()
    moe_utils.MoEAuxLossAutoScaler.main_loss_backward_scale = torch.ones((), device=META)
    with pretending(counting), ranks(layout, last), patch.object(gpu, "uses_gpu", lambda _: not stock):
        dtype = getattr(torch, DTYPES[recipe.dtype])
        model = megatron.build_model(point, execution, META, dtype, drawn=False)
        if stock:
            model.config.cross_entropy_loss_fusion = False  # Megatron's default
        for weight in model.parameters():
            weight.main_grad = torch.empty(weight.shape, device=META)
            weight.grad_added_to_main_grad = False
            weight.register_post_accumulate_grad_hook(_add)
        counting.known.update(t.untyped_storage() for w in model.parameters() for t in (w, w.main_grad))
        size = recipe.micro_batch, shape.sequence_length
        ids = torch.empty(size, dtype=torch.int64, device=META)
        with counting:
            outputs = []
            for _ in range(in_flight):
                if not model.pre_process:
                    hidden = (shape.sequence_length // layout.tp, recipe.micro_batch, shape.hidden)
                    model.set_input_tensor(torch.empty(hidden, dtype=dtype, device=META, requires_grad=True))
                result = model(ids, ids, None, labels=ids)
                outputs.append(result.float().mean() if model.post_process else result)
            del result
            for output in outputs:
                output.backward(torch.empty_like(output))
            del outputs, output
    moe_utils.get_moe_layer_wise_logging_tracker().clear()
    moe_utils.MoEAuxLossAutoScaler.main_loss_backward_scale = None
    return counting.count


def _add(weight: Any) -> None:
    """As the hook of Megatron's data-parallel wrapper."""
    if not weight.grad_added_to_main_grad:
        weight.main_grad.add_(weight.grad)
    weight.grad = None


def peak(point: Point, layout: Layout) -> float:
    """Bytes beside weights, gradients and optimizer on the pipeline stage that needs most of them.

    Every layer adds as much, so that two small models tell of all.
    """

    def of(last: bool, in_flight: int) -> float:
        few, more = (micro_batch(with_layers(point, n * layout.pp), layout, last, in_flight).peak for n in (2, 3))
        return few + (more - few) * (point.model.layers / layout.pp - 2)

    micro_batches = point.pretrain.global_batch // (point.pretrain.micro_batch * layout.replicas)
    first = of(False, min(layout.pp, micro_batches)) if layout.pp > 1 else 0.0
    return max(first, of(True, 1))


def with_layers(point: Point, layers: int) -> Point:
    """The point with another depth."""
    return replace(point, model=point.model.model_copy(update={"layers": layers}))


def layer_and_head(point: Point, stock: bool) -> tuple[Count, Count]:
    """What one more layer adds, and all else: embedding, last norm, head and loss."""
    alone = Layout.model_validate({})
    one, two = (micro_batch(with_layers(point, n), alone, stock=stock) for n in (1, 2))
    layer = two - one
    return layer, one - layer


# ------------------------------------------------------------------------------------------------------------ main

SHOWN = ("d512-E8-k2-320M-A170M", "d512-E64-k2-1.7B-A170M", "d1024-E64-k2-6.7B-A470M", "d2048-E16-k2-7.1B-A1.5B")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="peak memory of all layouts")
    args = parser.parse_args()
    dag, layouts = Dag.load("math"), Layouts.load("math")
    if args.memory:
        from pipeline.planning.gpu_memory import GB, pretrain_memory

        print(
            "| point | layout | activations and logits, counted GB | by plan | counted / plan |\n|---|---|---|---|---|"
        )
        for name, point in dag.points.items():
            layout = layouts.of(name, "pretrain")
            counted, planned = peak(point, layout), pretrain_memory(point, layout)
            stated = planned.activations + planned.logits
            print(
                f"| {name} | {layout} | {counted / GB:.1f} | {stated / GB:.1f} | {counted / stated:.2f} |", flush=True
            )
        return
    print("| point, micro-batch | | kernels | GB | waits |\n|---|---|---|---|---|")
    for name in SHOWN:
        point = dag.points[name]
        for what, stock in (("Megatron's", True), ("ours", False)):
            for part, count in zip(("layer", "head, loss"), layer_and_head(point, stock), strict=True):
                kernels, waits = sum(count.kernels.values()), sum(count.waits.values())
                label = f"{name}, {point.pretrain.micro_batch} | {part}, {what}"
                print(f"| {label} | {kernels} | {count.bytes / 1e9:.1f} | {waits} |", flush=True)


if __name__ == "__main__":
    main()
