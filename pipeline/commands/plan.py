"""What a scale will cost and what of it remains, before anything runs: `python -m pipeline plan --scale math`.

One row per point: parameters, FLOPs, layout of pre-training (config/layouts.yaml), memory of its GPU that needs most,
GPU-hours by stage, disk, and the stages that remain. Totals are of what remains. Nothing is written.

    GPU-hours = FLOPs / (peak FLOP/s of the GPU x MFU)

MFU is --mfu, or what one H200 reached at the width (docs/PERFORMANCE.md), until pre-training records of this scale on
the same kind of device say what was reached; every other stage likewise has a rate of its own. The plan then prints
predicted against actual time of what is finished: a job's prediction uses the records of the others.

Estimates, not measurements: FLOPs of evaluations are 2 x active parameters x tokens, where the tokens of an item are
assumed (pipeline/planning/costs.py); GRPO takes every answer at its greatest length; both are taken to reach a quarter
of that MFU.

A scale that was run on CPUs, or that neither config/layouts.yaml lays out for GPUs nor this machine has one for, is
planned for the CPUs of this machine (--gpu says otherwise): time of one process for each stage, from stated times
(pipeline/planning/cpu.py) or as the records have it, and until when this machine's cores will have done it.

Ends with 1 if a job cannot fit into memory, or if what remains is above --budget-gpu-hours (on CPUs: hours of
processes).
"""

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.commands.common import add_common
from pipeline.config.layouts import Layouts
from pipeline.dag.dag import Dag
from pipeline.planning import costs, cpu
from pipeline.planning.forecast import COMPUTING, CPU, SERVING, Cost, Plan, device_of, make, paces, rates
from pipeline.planning.gpu_memory import GB, GPUS
from pipeline.planning.words import aligned, duration, size


def table(plan: Plan) -> list[str]:
    """The plan for people: one row per point, totals, predicted against actual, refusals."""
    stages = [stage for stage in COMPUTING if any(cost.job.stage == stage for cost in plan.jobs)]
    head = ["point", "total", "active", "TPP", "FLOPs", "layout", "GB/GPU", *stages, "disk", "remains"]
    if plan.on_cpu:
        head[5:7] = ["processes", "memory"]
    rows = [_row(plan, name, stages) for name in plan.dag.points]
    left_aligned = {0, 5, len(head) - 1}
    what = "time of one process on this machine's CPUs" if plan.on_cpu else f"GPU-hours on {plan.device}"
    lines = [
        f"{plan.dag.scale.title}: {len(rows)} points; {what}, by stage",
        *aligned([head, *rows], right=set(range(len(head))) - left_aligned),
    ]
    return [*lines, "", *totals(plan, stages), *calibration(plan), *read(plan.dag), *plan.refusals]


def _row(plan: Plan, name: str, stages: list[str]) -> list[str]:
    """A point's row of the table."""
    point, jobs = plan.dag.points[name], plan.of_point[name]
    pretrain = next((cost for cost in jobs if cost.job.stage == "pretrain"), None)
    if pretrain is None:  # adopted
        training = ["-", "-", "-"]
    else:
        memory = size(max(cost.memory for cost in jobs)) if plan.on_cpu else f"{pretrain.memory / GB:.1f}"
        training = [f"{pretrain.flops:.2e}", str(pretrain.layout), memory]
    left = list(dict.fromkeys(cost.job.stage for cost in jobs if cost.remains))
    everything = len(left) == len({cost.job.stage for cost in jobs})
    return [
        name,
        f"{point.total_params:,}",
        f"{point.active_params:,}",
        f"{point.tokens_per_param:.1f}",
        *training,
        *(_hours(plan, [cost for cost in jobs if cost.job.stage == stage]) for stage in stages),
        size(sum(cost.disk for cost in jobs)),
        "everything" if everything else " ".join(left) or "nothing",
    ]


def read(dag: Dag) -> list[str]:
    """Which files the corpora that come from outside are made of."""
    origins = {job.source: dag.datasets[str(job.source)].origin() for job in dag.of("corpus")}
    return [f"reads {name}: {origin}" for name, origin in origins.items() if origin]


def _hours(plan: Plan, jobs: list[Cost]) -> str:
    """What jobs take together: a duration on CPUs, else a number of GPU-hours."""
    if not jobs:
        return "-"
    hours = sum(cost.predicted_h for cost in jobs)
    return duration(hours * 3600) if plan.on_cpu else _figure(hours)


def _time(plan: Plan, hours: float) -> str:
    return duration(hours * 3600) if plan.on_cpu else f"{hours:.3g} GPU-hours"


def _figure(hours: float) -> str:
    if 0 < hours < 0.01:
        return "<0.01"
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def totals(plan: Plan, stages: list[str]) -> list[str]:
    """What remains, by stage and altogether."""
    left = [cost for cost in plan.jobs if cost.remains]
    unit = "" if plan.on_cpu else " GPU-hours"
    lines = []
    for stage in stages:
        jobs = [cost for cost in left if cost.job.stage == stage]
        if jobs:
            flops, of = sum(cost.flops for cost in jobs), len(plan.dag.of(stage))
            lines.append(f"{stage}: {len(jobs)} of {of} jobs, {flops:.3g} FLOPs, {_hours(plan, jobs)}{unit}")
    light = [cost for cost in left if cost.job.stage not in COMPUTING]
    if light and plan.on_cpu:
        lines.append(f"all others: {len(light)} jobs, {_hours(plan, light)}")
    kept, held = (sum(cost.disk for cost in jobs) for jobs in (plan.jobs, [c for c in plan.jobs if not c.remains]))
    state = max((costs.state_bytes(plan.dag, cost.job) for cost in left), default=0.0)
    lines.append(f"remaining: {len(left)} jobs, {_hours(plan, left) if left else 'nothing'}{unit if left else ''}")
    if left and plan.on_cpu:
        lines[-1] += (
            f" of one process: {duration(plan.elapsed_h * 3600)} with --cores {cpu.cores()}, what this machine has"
        )
    lines.append(
        f"disk: {size(kept)} when all is done, of which {size(held)} is there; the saves of the largest job take "
        f"{size(state)} while it runs"
    )
    return [*lines, *_notes(plan)]


def _notes(plan: Plan) -> list[str]:
    """What the totals leave out, and what they rest on."""
    lines = []
    if unknown := costs.unknown_tokens(plan.dag):
        named = ", ".join(unknown[:3]) + f" and {len(unknown) - 3} more" * (len(unknown) > 3)
        lines.append(f"disk does not include text and tokens of sources whose size is not in the registry: {named}")
    if plan.on_cpu:
        lines.append(
            "time: stated, from small models on two cores (docs/VALIDATION.md); stages with records: as long as those "
            f"took; --gpu {', '.join(GPUS)} plans for GPUs"
        )
    else:
        if plan.mfu_is_stated:
            share = f"{max(plan.mfu.values()):g}, stated"
        else:
            share = ", ".join(f"{mfu:g} at d{hidden}" for hidden, mfu in plan.mfu.items())
            share += ", by measurements on one H200 without communication"
        lines.append(
            f"MFU of pre-training, of {GPUS[plan.device].flops / 1e12:g} TFLOP/s: {share}; other stages: {SERVING:g} "
            "of that, assumed. Stages with records: the rate they reached"
        )
    return lines


def calibration(plan: Plan) -> list[str]:
    """Predicted against actual, for the stages that have records on this kind of device."""
    lines = []
    for stage in COMPUTING:
        finished = [cost for cost in plan.jobs if cost.job.stage == stage and cost.actual_h]
        if not finished:
            continue
        if plan.on_cpu:
            pace = median(paces(plan.dag, finished)[stage])
            lines.append(f"{stage}: {pace:.2f} times the stated time by {len(finished)} records")
        else:
            rate = median(rates(finished)[stage])
            mfu = rate / GPUS[plan.device].flops
            lines.append(f"{stage}: {rate:.3g} FLOP/s per GPU by {len(finished)} records, MFU {mfu:.1%}")
        for cost in finished:
            assert cost.actual_h
            predicted, actual = (_time(plan, hours) for hours in (cost.predicted_h, cost.actual_h))
            error = cost.predicted_h / cost.actual_h - 1
            lines.append(f"  {cost.job.label}: predicted {predicted}, actual {actual} ({error:+.0%})")
    return lines


def describe(plan: Plan) -> dict[str, Any]:
    """The plan as data. Hours are `gpu_hours`, or on CPUs `cpu_hours`, those of processes."""
    unit = "cpu_hours" if plan.on_cpu else "gpu_hours"
    points = {
        name: {
            "total_params": point.total_params,
            "active_params": point.active_params,
            "tokens": point.tokens,
            "tokens_per_param": point.tokens_per_param,
            "micro_batch": point.pretrain.micro_batch,
            "jobs": [cost.describe(unit) for cost in plan.of_point[name]],
        }
        for name, point in plan.dag.points.items()
    }
    left = [cost for cost in plan.jobs if cost.remains]
    total = {
        "jobs": len(left),
        "flops": sum(cost.flops for cost in left),
        unit: plan.remaining_h,
        "disk_gb": sum(cost.disk for cost in plan.jobs) / GB,
    }
    if plan.on_cpu:
        total |= {"elapsed_hours": plan.elapsed_h, "cores": cpu.cores()}
    data = [cost.describe(unit) for cost in plan.jobs if cost.job.point is None]
    heading = {"scale": plan.dag.name, "device": plan.device, "mfu": plan.mfu}
    return heading | {"points": points, "data": data, "remaining": total, "refusals": plan.refusals}


def run(args: argparse.Namespace) -> int:
    """Print the plan; 1 if it cannot be carried out."""
    dag = Dag.load(args.scale, args.config)
    layouts = Layouts.load(dag.name, Path(args.config).with_name("layouts.yaml"))
    plan = make(dag, layouts, args.results, args.gpu or device_of(dag, layouts, args.results), args.mfu)
    budget, hours = args.budget_gpu_hours, plan.remaining_h
    if budget is not None and hours > budget:
        unit = "hours of CPU processes" if plan.on_cpu else "GPU-hours"
        plan.refusals.append(f"what remains is {_figure(hours)} {unit}, above --budget-gpu-hours {budget:g}")
    print(json.dumps(describe(plan), indent=2) if args.json else "\n".join(table(plan)))
    return 1 if plan.refusals else 0


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("plan", help="cost of a scale, and what of it remains", description=__doc__)
    add_common(parser)
    parser.add_argument(
        "--gpu",
        choices=[*GPUS, CPU],
        help="kind of device (default: that of the scale's records; h200 for scales of GPUs)",
    )
    parser.add_argument(
        "--mfu", type=_share, help="share of the GPU's peak (default: what was measured on an H200 at the width)"
    )
    parser.add_argument(
        "--budget-gpu-hours", type=float, help="end with 1 if what remains takes more (CPUs: hours of processes)"
    )
    parser.add_argument("--json", action="store_true", help="all numbers, by job, as JSON")
    parser.set_defaults(func=run)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
