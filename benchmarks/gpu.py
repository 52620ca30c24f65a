"""Pre-training on one GPU, in less than 10 minutes: speed, memory, and whether its numbers are right.

    python -m benchmarks.gpu                          from the repository's folder
    python -m benchmarks.gpu --device cpu --tiny      the same path on a CPU, with models too small to say anything

Speed: tokens a second and MFU (the share of the data sheet's bf16 FLOP/s that the model's FLOPs come to) at hidden 512,
1024 and 2048 with 8 and 64 experts, the paper's vocabulary, sequences and micro-batches, in bf16, two micro-batches a
step (as in most of the paper's layouts, whose 32 to 128 GPUs share the optimizer's work). Layers are cut to as many as
`plan` says fit, and said. Ours stands against Megatron's own modules in the same trainer, and against transformers'
Mixtral as its documentation trains it. What does not fit is tried with half the micro-batch, and so on; the cell says
so. Memory: the peak that PyTorch allocated for ours, against `plan`'s estimate.

Numbers: losses of 20 steps in fp32 against the CPU's; and logits in bf16 of a model and of its conversion.

Needs torch and megatron-core, and what reads the configuration (pydantic, PyYAML). Without transformers, its cells say
so. Each measurement is a process of its own, one after the other.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.pretrain import matmul_flops, megatron_step, transformers_step
from pipeline.config.layouts import Layout
from pipeline.config.recipes import DTYPES, Pretrain
from pipeline.config.scales import Model
from pipeline.dag.point import Point
from pipeline.planning.gpu_memory import GB, GPUS, pretrain_memory
from pipeline.runtime.execution import Execution, prepare_environment
from pipeline.runtime.quiet import quietly

OURS, STOCK, PEER = "ours", "Megatron's modules", "transformers"
WARM_UP, STEPS, EQUAL_STEPS, MICRO_BATCHES = 3, 6, 20, 2
LAYERS = (16, 8, 4, 2, 1)
MICRO_BATCH = {(512, 8): 16, (512, 64): 16, (1024, 8): 16, (1024, 64): 8, (2048, 8): 8, (2048, 64): 2}  # the paper's
USABLE = 0.9  # of a GPU's memory, to choose layers by
ALONE = Layout.model_validate({})


def point_of(hidden: int, experts: int, layers: int, micro_batch: int, tiny: bool, dtype: str) -> Point:
    """A point of the paper's sizes, or one that a CPU trains in no time."""
    sizes: dict[str, Any] = {"layers": layers}
    if tiny:
        sizes |= {"layers": 2, "head_size": 32, "vocab_size": 96, "sequence_length": 32}
        hidden, micro_batch = hidden // 16, 4
    recipe = {"steps": 1000, "lr": 1e-3, "min_lr": 1e-4, "warmup_steps": 100, "dtype": dtype}
    batch = {"global_batch": MICRO_BATCHES * micro_batch, "micro_batch": micro_batch}
    pretrain = Pretrain.model_validate(recipe | batch)
    return Point(hidden=hidden, experts=experts, topk=2, model=Model.model_validate(sizes), pretrain=pretrain)


def points_for(memory: float | None, tiny: bool) -> list[Point]:
    """Those to be measured, with the most layers that fit into so many bytes (any, where that is None)."""
    points = []
    for (hidden, experts), micro_batch in MICRO_BATCH.items():
        deep = [point_of(hidden, experts, n, micro_batch, tiny, "fp32" if tiny else "bf16") for n in LAYERS]
        fitting = [p for p in deep if memory is None or pretrain_memory(p, ALONE).total <= USABLE * memory]
        points += fitting[:1]
    return points[:1] if tiny else points


def data_of(point: Point, count: int) -> list[dict[str, Any]]:
    """Sequences in which each token follows from the one before it, with a tenth drawn."""
    import torch

    generator, length, v = torch.Generator().manual_seed(0), point.model.sequence_length, point.model.vocab_size
    ids = torch.randint(0, v, (count, length + 1), generator=generator)
    drawn = torch.rand(ids.shape, generator=generator) < 0.1
    for i in range(1, length + 1):
        ids[:, i] = torch.where(drawn[:, i], ids[:, i], (7 * ids[:, i - 1] + 1) % v)
    return [{"tokens": row[:-1], "labels": row[1:], "position_ids": torch.arange(length)} for row in ids]


# --------------------------------------------------------------------------------------- in processes of their own


def process(target: Callable[..., Any], *args: Any) -> Any:
    """What a function returns in a fresh process, or the error that it ends with.

    Of Megatron's own layer of experts not all memory is free again before its process ends.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(target, *args).result()
        except ImportError as error:
            return f"no {error.name}"
        except Exception as error:  # one engine's failure is a cell of the table
            line = str(error).splitlines()[0][:160] if str(error) else ""
            return RuntimeError(f"{type(error).__name__}: {line}")


def about_device(device_name: str) -> dict[str, Any]:
    """Name, memory and matrix-product speed; and what PyTorch takes there for what the modules leave to it."""
    execution = Execution(device=device_name)
    with quietly():
        prepare_environment(execution)
        import torch

        device, dtype = torch.device(device_name), torch.bfloat16 if execution.on_gpu else torch.float32
        about: dict[str, Any] = {"name": "CPU", "memory": None, "versions": f"torch {torch.__version__}"}
        if execution.on_gpu:
            about["name"], about["memory"] = torch.cuda.get_device_name(device), min(torch.cuda.mem_get_info(device))
        about["matmul"] = matmul_flops(device, dtype, time.perf_counter)
        return about | {"attention": attention_kernel(device), "accumulates": accumulates(device)}


def attention_kernel(device: Any) -> str:
    """PyTorch's operator for causal attention in bf16, on heads laid out as Megatron lays them out."""
    import torch
    import torch.nn.functional as F
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class See(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(function))
            return function(*args, **kwargs or {})

    heads = torch.randn(256, 2, 4, 3, 128, device=device, dtype=torch.bfloat16, requires_grad=True)  # [S, B, H, 3, C]
    with See():
        F.scaled_dot_product_attention(*heads.permute(3, 1, 2, 0, 4), is_causal=True)
    return next((name.split(".")[1] for name in seen if "attention" in name), "written out")


def accumulates(device: Any) -> bool:
    """Whether a product of bf16 matrices can be added to fp32 at once, as the gradient of the head wants it."""
    import torch

    left, total = torch.ones(8, 8, device=device, dtype=torch.bfloat16), torch.ones(8, 8, device=device)
    try:
        torch.addmm(total, left, left, out_dtype=torch.float32, out=total)
    except RuntimeError:
        return False
    return bool(total[0, 0] == 9)


def use_modules(engine: str, stack: ExitStack) -> None:
    """Have models built of ours for a GPU, whatever the device is, or of Megatron's own with its optimizer's step."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec

    from pipeline.engines.megatron import fast, gpu, modules, trainer

    def spec(config: Any) -> Any:
        return get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization=config.normalization)

    replaced = [(fast, "fits", lambda *_: False), (gpu, "uses_gpu", lambda _: engine == OURS)]
    if engine == STOCK:
        replaced += [(modules, "block_spec", spec), (trainer, "trains_alone", lambda *_: False)]
    for module, name, value in replaced:
        stack.enter_context(patch.object(module, name, value))


def speed(engine: str, point: Point, device_name: str) -> dict[str, Any] | str:
    """Of one point, with the largest micro-batch that fits, from its own downwards."""
    micro_batch = point.pretrain.micro_batch
    while micro_batch:
        sizes = {"micro_batch": micro_batch, "global_batch": MICRO_BATCHES * micro_batch}
        tried = replace(point, pretrain=point.pretrain.model_copy(update=sizes))
        result = process(timed, engine, tried, device_name)
        if not (isinstance(result, Exception) and "OutOfMemoryError" in str(result)):
            print(f"{engine}, d{point.hidden}-E{point.experts}: {result}", file=sys.stderr, flush=True)
            return result if isinstance(result, dict) else str(result)
        micro_batch //= 2
    return "out of memory"


def timed(engine: str, point: Point, device_name: str) -> dict[str, Any]:
    """Tokens a second and peak memory; run in a process of its own."""
    execution = Execution(device=device_name)
    with quietly(), ExitStack() as stack:
        prepare_environment(execution)
        import torch

        from pipeline.engines.megatron import model as megatron

        if engine != PEER:
            use_modules(engine, stack)
        device = stack.enter_context(megatron.session(execution))
        dtype = getattr(torch, DTYPES[point.pretrain.dtype])
        batch, on_gpu = point.pretrain.global_batch, device.type == "cuda"
        data = data_of(point, 2 * batch)
        if engine == PEER:
            step = transformers_step(point, device, dtype, data)
        else:
            step = megatron_step(point, execution, device, dtype, data)
        times = []
        for i in range(WARM_UP + STEPS):
            begun = time.perf_counter()
            step(i % 2)
            if on_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
        return {
            "tokens_per_s": batch * point.model.sequence_length / statistics.median(times[WARM_UP:]),
            "slowest": max(times[WARM_UP:]) / statistics.median(times[WARM_UP:]),
            "peak": torch.cuda.max_memory_allocated() if on_gpu else None,
            "micro_batch": point.pretrain.micro_batch,
        }


def losses(point: Point, device_name: str, for_gpu: bool) -> list[float]:
    """Of the first steps, of a model built as on a GPU or as on a CPU."""
    execution = Execution(device=device_name)
    with quietly(), ExitStack() as stack:
        prepare_environment(execution)
        import torch

        from pipeline.engines.megatron import model as megatron
        from pipeline.engines.megatron.trainer import Trainer

        if for_gpu:
            use_modules(OURS, stack)
        data = data_of(point, EQUAL_STEPS * point.pretrain.global_batch)
        with megatron.session(execution) as device:
            trainer = Trainer(megatron.build_model(point, execution, device, torch.float32), point)
            return [trainer.step(data, i).loss for i in range(EQUAL_STEPS)]


def parity(point: Point, device_name: str) -> dict[str, float]:
    """How far logits in bf16 of Megatron's model and of its conversion are from each other, and each from fp32's."""
    execution = Execution(device=device_name)
    with quietly(), tempfile.TemporaryDirectory() as folder:
        prepare_environment(execution)
        import torch
        import transformers

        from pipeline.engines.megatron import model as megatron
        from pipeline.engines.megatron.weights import read_tensors, save_weights

        architecture = point.architecture
        with torch.no_grad(), megatron.session(execution) as device:
            ours = megatron.build_model(point, execution, device, torch.bfloat16).eval()
            save_weights(ours, Path(folder))
            config = transformers.CONFIG_MAPPING[architecture.HF_TYPE](**architecture.hf_config(point.shape))
            theirs = getattr(transformers, architecture.HF_CLASS)(config)
            theirs.load_state_dict(architecture.hf_weights(point.shape, read_tensors(Path(folder))))
            ids = torch.stack([row["tokens"] for row in data_of(point, 2)]).to(device)
            places = torch.arange(ids.shape[1], device=device).expand_as(ids)
            converted = theirs.to(device, torch.bfloat16).eval()(ids).logits.float()
            exact = theirs.float()(ids).logits
            logits = ours(ids, places, None).float()
    return {
        "apart": (logits - converted).abs().mean().item(),
        "ours": (logits - exact).abs().mean().item(),
        "theirs": (converted - exact).abs().mean().item(),
        "size": exact.abs().mean().item(),
    }


# ------------------------------------------------------------------------------------------------------------ main


def cell(result: dict[str, Any] | str, point: Point, ours: dict[str, Any] | str | None = None) -> str:
    """Tokens a second, and how many times as fast ours is."""
    if not isinstance(result, dict):
        return str(result)
    text = f"{result['tokens_per_s']:,.0f}"
    if isinstance(ours, dict):
        text += f" ({ours['tokens_per_s'] / result['tokens_per_s']:.2f})"
    return text + (
        f", micro-batch {result['micro_batch']}" if result["micro_batch"] != point.pretrain.micro_batch else ""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--tiny", action="store_true", help="models too small to say anything")
    args = parser.parse_args()
    begun = time.monotonic()
    machine = process(about_device, args.device)
    if isinstance(machine, Exception):
        parser.error(f"no {args.device} device: {machine}")
    kind = next((gpu for gpu in GPUS.values() if gpu.name in machine["name"].lower()), None)
    best = kind.flops if kind else machine["matmul"]
    print(f"{machine['name']}, {machine['versions']}; matrix products {machine['matmul'] / 1e12:,.3g} TFLOP/s")
    print(f"MFU is of {best / 1e12:,.3g} TFLOP/s ({'data sheet' if kind else 'the matrix products'})")
    how = "" if machine["accumulates"] else "not "
    print(
        f"attention: {machine['attention']}; the head's gradient is {how}added in the product that makes it\n",
        flush=True,
    )

    points = points_for(machine["memory"], args.tiny)
    each = {engine: [speed(engine, point, args.device) for point in points] for engine in (OURS, STOCK, PEER)}
    print("| point | layers | tokens/s | MFU | Megatron's modules | transformers | peak GB | plan | slowest step |")
    print("|---|---|---|---|---|---|---|---|---|")
    for i, point in enumerate(points):
        ours, planned = each[OURS][i], pretrain_memory(point, ALONE).total
        cells = [f"d{point.hidden}-E{point.experts}, {point.pretrain.micro_batch} sequences", f"{point.model.layers}"]
        cells += [cell(ours, point), "-", *(cell(each[name][i], point, ours) for name in (STOCK, PEER)), "-"]
        cells += [f"{planned / GB:.1f}", "-"]
        if isinstance(ours, dict):
            cells[3] = f"{ours['tokens_per_s'] * point.flops_per_token / best:.1%}"
            cells[6] = f"{ours['peak'] / GB:.1f}" if ours["peak"] else "-"
            cells[8] = f"{ours['slowest']:.2f}"
        print(f"| {' | '.join(cells)} |")
    print("\nIn brackets: how many times as many tokens a second ours makes.", flush=True)

    small = point_of(1024, 8, 2, 4, True, "fp32")
    here, there = process(losses, small, args.device, True), process(losses, small, "cpu", False)
    if isinstance(here, list) and isinstance(there, list):
        apart = [abs(a - b) / b for a, b in zip(here, there, strict=True)]
        print(f"Losses of {EQUAL_STEPS} steps in fp32, here and on the CPU: at most {max(apart):.1e} apart, ", end="")
        print(f"as a share; {there[0]:.4f} -> {there[-1]:.4f}", flush=True)
    else:
        print(f"Losses of {EQUAL_STEPS} steps: here {here}; on the CPU {there}", flush=True)

    middle = point_of(1024 if args.tiny else 512, 8, 4, 1, args.tiny, "bf16")
    found = process(parity, middle, args.device)
    if isinstance(found, dict):
        print(f"Logits in bf16 of Megatron's model and of its conversion: {found['apart']:.1e} apart, ", end="")
        print(f"in the mean; {found['ours']:.1e} and {found['theirs']:.1e} from those in fp32, ", end="")
        print(f"which are {found['size']:.1e} large")
    else:
        print(f"Conversion not compared: {found}")
    print(f"{time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
