"""Pre-training speed: this project's Megatron trainer against a plain transformers loop on the same model and data.

    python benchmarks/pretrain.py                 the shapes of scale mini
    python benchmarks/pretrain.py --wide          wider ones: hidden 64, 128 and 256 with 8 and 64 experts

A row for each shape: milliseconds per step of each engine, and how many times faster ours is, as the median and the
range over the rounds. Engines are processes of their own that take turns, so that each round is a comparison under the
same load. On a CPU, times are CPU seconds of one thread, so that other work on the machine does not count (but for what
it does to caches); on a GPU they are wall-clock seconds. The last columns are our tokens per second, and the share of
the device's matrix-product speed (measured here, fp32 or bf16 as the recipe says) that the model's FLOPs come to.

The peer is transformers' own class (`MixtralForCausalLM`), trained as its documentation would have it: grouped experts,
fused attention, fused AdamW, gradient clipping, load-balancing loss. It has no z-loss, no micro-batch bookkeeping and
reports nothing. On a CPU it is measured twice: as it is, and in a process that keeps the memory it frees, as ours does.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from pipeline.config.recipes import DTYPES, Pretrain
from pipeline.config.scales import Model
from pipeline.dag.dag import Dag
from pipeline.dag.point import Point
from pipeline.runtime.execution import Execution, prepare_environment
from pipeline.runtime.quiet import quietly

WARM_UP = 5
SAMPLES = 512
OURS, PEER, PEER_KEEPING = "ours", "transformers", "transformers, memory kept"


def wide_points() -> list[Point]:
    """Four layers of sequences of 256, micro-batches of 8, experts twice as wide as the model."""
    sizes = {"layers": 4, "head_size": 32, "ffn_ratio": 2, "vocab_size": 4096, "sequence_length": 256}
    recipe = {"steps": 1000, "global_batch": 8, "micro_batch": 8, "lr": 1e-3, "min_lr": 1e-4, "warmup_steps": 100}
    model, pretrain = Model.model_validate(sizes), Pretrain.model_validate(recipe | {"dtype": "fp32"})
    return [
        Point(hidden=hidden, experts=experts, topk=2, model=model, pretrain=pretrain)
        for hidden in (64, 128, 256)
        for experts in (8, 64)
    ]


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


def megatron_step(
    point: Point, execution: Execution, device: Any, dtype: Any, data: list[dict]
) -> Callable[[int], Any]:
    import torch
    from megatron.core.transformer.moe.moe_utils import get_moe_layer_wise_logging_tracker

    from pipeline.engines.megatron import model as megatron
    from pipeline.engines.megatron.trainer import Trainer

    get_moe_layer_wise_logging_tracker().clear()  # of the point before
    model = megatron.build_model(point, execution, device, dtype, drawn=not execution.on_gpu)
    if execution.on_gpu:  # which draws the weights of large models in no time
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=point.shape.init_std)
    trainer = Trainer(model, point)
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
    with device:  # as above
        model = getattr(transformers, architecture.HF_CLASS)(config).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, fused=True)

    def step(i: int) -> None:
        for first in range(i * recipe.global_batch, (i + 1) * recipe.global_batch, recipe.micro_batch):
            ids = torch.stack([row["tokens"] for row in data[first : first + recipe.micro_batch]]).to(device)
            (model(ids, labels=ids).loss * recipe.micro_batch / recipe.global_batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad).item()
        optimizer.step()
        optimizer.zero_grad()

    return step


def serve(engine: str, points: list[Point], device_name: str, pipe: Connection) -> None:
    """A process of one engine: for each point, the seconds of as many steps as the pipe asks for, until it says 0."""
    execution = Execution(device=device_name)
    with quietly():
        prepare_environment(execution)
        import torch

        from pipeline.engines.megatron import model as megatron
        from pipeline.engines.megatron.alone import keep_freed_memory

        torch.set_num_threads(1)
        clock = time.perf_counter if execution.on_gpu else time.process_time
        if engine == PEER_KEEPING:
            keep_freed_memory()
        for point in points:
            dtype = getattr(torch, DTYPES[point.pretrain.dtype])
            batch, length = point.pretrain.global_batch, point.model.sequence_length
            generator = torch.Generator().manual_seed(0)
            ids = torch.randint(0, point.model.vocab_size, (max(SAMPLES, 2 * batch), length), generator=generator)
            data = [{"tokens": row, "labels": row, "position_ids": torch.arange(length)} for row in ids]
            with megatron.session(execution) as device:
                if engine == OURS:
                    step = megatron_step(point, execution, device, dtype, data)
                    pipe.send(matmul_flops(device, dtype, clock))
                else:
                    step = transformers_step(point, device, dtype, data)
                while steps := pipe.recv():
                    times = []
                    for i in range(steps):
                        begun = clock()
                        step(i % (len(data) // batch))
                        times.append(clock() - begun)
                    pipe.send(times)
                del step


def measure(pipes: dict[str, Connection], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Median seconds per step of each engine in each of the rounds, in which they take turns."""
    steps = {}
    for name, pipe in pipes.items():
        pipe.send(WARM_UP)
        steps[name] = max(2, min(100, int(seconds / pipe.recv()[-1])))
    times: dict[str, list[float]] = {name: [] for name in pipes}
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send(steps[name])
            times[name].append(statistics.median(pipe.recv()))
    for pipe in pipes.values():
        pipe.send(0)
    return times


def ratio(times: dict[str, list[float]], engine: str) -> str:
    """How many times as long as ours another engine takes: median and range over the rounds."""
    each = [theirs / ours for theirs, ours in zip(times[engine], times[OURS], strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="mini", help="the shapes of a scale of config/grid.yaml (default: mini)")
    parser.add_argument("--wide", action="store_true", help="the wider shapes instead")
    parser.add_argument("--point", help="one point of them (default: each shape once)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=9, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of an engine in a round (default: %(default)s)")
    args = parser.parse_args()
    execution = Execution(device=args.device)
    points = wide_points() if args.wide else list(Dag.load(args.scale).points.values())
    points = [p for p in {p.shape: p for p in reversed(points)}.values() if args.point in (None, p.name)][::-1]
    if not points:
        parser.error(f"no such point: {args.point}")
    engines = [OURS, PEER] if execution.on_gpu else [OURS, PEER, PEER_KEEPING]
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in engines:
        pipes[name], theirs = context.Pipe()
        context.Process(target=serve, args=(name, points, args.device, theirs), daemon=True).start()
        theirs.close()
    others = [f"{name} ms | times ours" for name in engines[1:]]
    columns = ["shape", "ours ms", *others, "tokens/s", "of matmul speed"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * (len(columns) + len(others))}", flush=True)
    for point in points:
        peak = pipes[OURS].recv()
        times = measure(pipes, args.rounds, args.seconds)
        speed = point.pretrain.global_batch * point.model.sequence_length / statistics.median(times[OURS])
        milliseconds = {name: f"{statistics.median(times[name]) * 1e3:.1f}" for name in engines}
        cells = [f"{milliseconds[name]} | {ratio(times, name)}" for name in engines[1:]]
        share = speed * point.flops_per_token / peak
        print(f"| {point.name} | {milliseconds[OURS]} | {' | '.join(cells)} | {speed:,.0f} | {share:.0%} |", flush=True)


if __name__ == "__main__":
    main()
