"""Pre-training speed: this project's Megatron trainer against a plain transformers loop on the same model and data.

    python benchmarks/pretrain.py --scale mini

For each point: milliseconds per step, tokens per second, and the share of the device's matrix-product speed (measured
here, fp32 or bf16 as the recipe says) that the model's FLOPs come to. On a CPU, times are CPU seconds of one thread, so
that other work on the machine does not count; on a GPU they are wall-clock seconds.

The peer is transformers' own class (`MixtralForCausalLM`), trained as its documentation would have it: grouped experts,
fused attention, fused AdamW, gradient clipping, load-balancing loss. It has no z-loss, no micro-batch bookkeeping and
reports nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from pipeline.dag.dag import Dag
from pipeline.dag.point import Point
from pipeline.runtime.execution import Execution, prepare_environment
from pipeline.runtime.quiet import quietly

WARM_UP = 5


def matmul_flops(device: Any, dtype: Any, clock: Callable[[], float]) -> float:
    """FLOP/s of the fastest of a few large matrix products."""
    import torch

    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    times = []
    for _ in range(10):
        begun = clock()
        (a @ a)[0, 0].item()
        times.append(clock() - begun)
    return 2 * size**3 / min(times)


def median_step(step: Callable[[int], Any], steps: int, clock: Callable[[], float]) -> float:
    times = []
    for i in range(WARM_UP + steps):
        begun = clock()
        step(i)
        times.append(clock() - begun)
    return statistics.median(times[WARM_UP:])


def megatron_step(
    point: Point, execution: Execution, device: Any, dtype: Any, data: list[dict]
) -> Callable[[int], Any]:
    from pipeline.engines.megatron import model as megatron
    from pipeline.engines.megatron.trainer import Trainer

    trainer = Trainer(megatron.build_model(point, execution, device, dtype), point)
    return lambda i: trainer.step(data, i)


def transformers_step(point: Point, device: Any, dtype: Any, data: list[dict]) -> Callable[[int], Any]:
    import torch
    import transformers

    recipe, architecture = point.pretrain, point.architecture
    config = transformers.CONFIG_MAPPING[architecture.HF_TYPE](
        **architecture.hf_config(point.shape),
        output_router_logits=True,
        router_aux_loss_coef=recipe.aux_loss,
        experts_implementation="grouped_mm",
        attn_implementation="sdpa",
    )
    model = getattr(transformers, architecture.HF_CLASS)(config).to(device, dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, fused=True)

    def step(i: int) -> None:
        for first in range(i * recipe.global_batch, (i + 1) * recipe.global_batch, recipe.micro_batch):
            ids = torch.stack([row["tokens"] for row in data[first : first + recipe.micro_batch]]).to(device)
            (model(ids, labels=ids).loss * recipe.micro_batch / recipe.global_batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad).item()
        optimizer.step()
        optimizer.zero_grad()

    return step


@quietly()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="mini", help="a scale of config/grid.yaml (default: %(default)s)")
    parser.add_argument("--point", help="one point of it (default: all)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--steps", type=int, default=60, help="timed steps (default: %(default)s)")
    args = parser.parse_args()
    execution = Execution(device=args.device)
    prepare_environment(execution)
    import torch

    from pipeline.engines.megatron import model as megatron

    clock = time.perf_counter if execution.on_gpu else time.process_time
    dag = Dag.load(args.scale)
    print("point  engine  ms/step  tokens/s  share of matmul speed")
    for point in [dag.points[args.point]] if args.point else dag.points.values():
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[point.pretrain.dtype]
        batch, length = point.pretrain.global_batch, point.model.sequence_length
        ids = torch.randint(0, point.model.vocab_size, ((args.steps + WARM_UP) * batch, length))
        data = [{"tokens": row, "labels": row, "position_ids": torch.arange(length)} for row in ids]
        with megatron.session(execution) as device:
            peak = matmul_flops(device, dtype, clock)
            engines = {
                "megatron": megatron_step(point, execution, device, dtype, data),
                "transformers": transformers_step(point, device, dtype, data),
            }
            for name, step in engines.items():
                seconds = median_step(step, args.steps, clock)
                speed = batch * length / seconds
                share = speed * point.flops_per_token / peak
                print(f"{point.name}  {name}  {seconds * 1e3:.1f}  {speed:,.0f}  {share:.1%}", flush=True)


if __name__ == "__main__":
    main()
