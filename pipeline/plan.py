"""What a scale will cost and what of it remains, before anything runs: `python -m pipeline plan --scale math`.

A row a point: parameters, FLOPs, layout of pre-training (config/layouts.yaml), memory of its GPU that needs most,
GPU-hours by stage, disk, and the stages that remain. Totals are of what remains. Nothing is written.

    GPU-hours = FLOPs / (peak FLOP/s of the GPU x MFU)

MFU is --mfu until pre-training records of this scale on the same kind of device say what was reached; every other stage
likewise has a rate of its own. The plan then prints predicted against actual time of what is finished: a job's
prediction uses the records of the others.

Estimates, not measurements: FLOPs of evaluations are 2 x active parameters x tokens, where the tokens of an item are
assumed (pipeline/costs.py); GRPO takes every answer at its greatest length; both are taken to reach a quarter of --mfu.

Ends with 1 if a layout cannot fit the GPU's memory, or if what remains is above --budget-gpu-hours.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from pipeline import costs
from pipeline.cli import add_common
from pipeline.dag import Dag
from pipeline.forecast import COMPUTING, CPU, SERVING, Cost, Plan, make, rates
from pipeline.layouts import Layouts
from pipeline.memory import GB, GPUS
from pipeline.registry import Text, origin


def table(plan: Plan) -> list[str]:
    """The plan for people: a row a point, totals, predicted against actual, refusals."""
    stages = [stage for stage in COMPUTING if any(cost.job.stage == stage for cost in plan.jobs)]
    unit = "process-hours" if plan.device == CPU else "GPU-hours"
    head = ["point", "total", "active", "TPP", "FLOPs", "layout", "GB/GPU", *stages, "disk GB", "remains"]
    rows = []
    for name, point in plan.dag.points.items():
        own = plan.of_point(name)
        pretrain = next((cost for cost in own if cost.job.stage == "pretrain"), None)
        hours = [_hours([cost for cost in own if cost.job.stage == stage]) for stage in stages]
        left = list(dict.fromkeys(cost.job.stage for cost in own if cost.remains))
        every = len(left) == len({cost.job.stage for cost in own})
        figures = [f"{point.total_params:,}", f"{point.active_params:,}", f"{point.tokens_per_param:.1f}"]
        if pretrain is None:  # adopted
            figures += ["-", "-", "-"]
        else:
            figures += [f"{pretrain.flops:.2e}", str(pretrain.layout), f"{pretrain.memory / GB:.1f}"]
        disk = f"{sum(cost.disk for cost in own) / GB:,.1f}"
        rows.append([name, *figures, *hours, disk, "everything" if every else " ".join(left) or "nothing"])
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    left_aligned = {0, head.index("layout"), len(head) - 1}
    lines = [f"{plan.dag.scale.title}: {len(rows)} points; {unit} on {plan.device}, by stage"]
    for row in [head, *rows]:
        cells = [
            c.ljust(w) if i in left_aligned else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return [*lines, "", *totals(plan, stages, unit), *calibration(plan, unit), *read(plan.dag), *plan.refusals]


def read(dag: Dag) -> list[str]:
    """Which files the corpora that come from outside are made of."""
    outside = {job.source: dag.datasets[str(job.source)] for job in dag.of("corpus")}
    return [f"reads {name}: {origin(source)}" for name, source in outside.items() if isinstance(source, Text)]


def _hours(found: list[Cost]) -> str:
    if not found:
        return "-"
    hours = [cost.predicted_h for cost in found]
    return "?" if None in hours else _figure(sum(h for h in hours if h is not None))


def _figure(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def totals(plan: Plan, stages: list[str], unit: str) -> list[str]:
    """What remains, by stage and altogether."""
    left = [cost for cost in plan.jobs if cost.remains]
    lines = []
    for stage in stages:
        found = [cost for cost in left if cost.job.stage == stage]
        if found:
            flops = sum(cost.flops for cost in found)
            lines.append(
                f"{stage}: {len(found)} of {len(plan.dag.of(stage))} jobs, {flops:.3g} FLOPs, {_hours(found)} {unit}"
            )
    kept, held = (sum(cost.disk for cost in some) / GB for some in (plan.jobs, [c for c in plan.jobs if not c.remains]))
    state = max((costs.state_bytes(plan.dag, cost.job) for cost in left), default=0.0) / GB
    hours = "?" if plan.remaining_h is None else _figure(plan.remaining_h)
    lines.append(f"remaining: {len(left)} jobs, {hours} {unit}")
    lines.append(
        f"disk: {kept:,.1f} GB when all is done, of which {held:,.1f} GB are there; and while the largest job runs, "
        f"its saves: {state:,.1f} GB"
    )
    if unknown := costs.unknown_tokens(plan.dag):
        named = ", ".join(unknown[:3]) + f" and {len(unknown) - 3} more" * (len(unknown) > 3)
        lines.append(f"disk is without text and tokens of sources whose size is not in the registry: {named}")
    if plan.device != CPU:
        lines.append(
            f"MFU of pre-training: {plan.mfu:g} of {GPUS[plan.device].flops / 1e12:g} TFLOP/s, stated; other stages: "
            f"{plan.mfu * SERVING:g}, assumed. Stages with records: the rate they reached"
        )
    return lines


def calibration(plan: Plan, unit: str) -> list[str]:
    """Predicted against actual, for the stages that have records on this kind of device."""
    lines = []
    for stage in COMPUTING:
        found = [cost for cost in plan.jobs if cost.job.stage == stage and cost.actual_h]
        if not found:
            continue
        rate = rates(found)[stage]
        mfu = f", MFU {rate / GPUS[plan.device].flops:.1%}" if plan.device in GPUS else ""
        lines.append(f"{stage}: {rate:.3g} FLOP/s a process by {len(found)} records{mfu}")
        for cost in found:
            if cost.predicted_h is None or cost.actual_h is None:
                lines.append(f"  {cost.job.label}: actual {cost.actual_h:.3g} {unit}; nothing to predict it from")
            else:
                error = cost.predicted_h / cost.actual_h - 1
                figures = f"predicted {cost.predicted_h:.3g}, actual {cost.actual_h:.3g} {unit} ({error:+.0%})"
                lines.append(f"  {cost.job.label}: {figures}")
    return lines


def describe(plan: Plan) -> dict[str, Any]:
    """The plan as data."""
    points = {
        name: {
            "total_params": point.total_params,
            "active_params": point.active_params,
            "tokens": point.tokens,
            "tokens_per_param": point.tokens_per_param,
            "micro_batch": point.pretrain.micro_batch,
            "jobs": [cost.describe() for cost in plan.of_point(name)],
        }
        for name, point in plan.dag.points.items()
    }
    left = [cost for cost in plan.jobs if cost.remains]
    total = {
        "jobs": len(left),
        "flops": sum(cost.flops for cost in left),
        "gpu_hours": plan.remaining_h,
        "disk_gb": sum(cost.disk for cost in plan.jobs) / GB,
    }
    data = [cost.describe() for cost in plan.jobs if cost.job.point is None]
    said = {"scale": plan.dag.name, "device": plan.device, "mfu": plan.mfu}
    return said | {"points": points, "data": data, "remaining": total, "refusals": plan.refusals}


def run(args: argparse.Namespace) -> int:
    """Print the plan; 1 if it cannot be carried out."""
    dag = Dag.load(args.scale, args.config)
    layouts = Layouts.load(dag.name, Path(args.config).with_name("layouts.yaml"))
    plan = make(dag, layouts, args.results, args.gpu, args.mfu)
    budget, hours = args.budget_gpu_hours, plan.remaining_h
    if budget is not None and (hours is None or hours > budget):
        found = "unknown" if hours is None else f"{hours:,.0f} GPU-hours"
        plan.refusals.append(f"what remains is {found}, above --budget-gpu-hours {budget:g}")
    print(json.dumps(describe(plan), indent=2) if args.json else "\n".join(table(plan)))
    return 1 if plan.refusals else 0


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("plan", help="cost of a scale, and what of it remains", description=__doc__)
    add_common(parser)
    parser.add_argument("--gpu", default="h200", choices=[*GPUS, CPU], help="kind of device (default: %(default)s)")
    parser.add_argument(
        "--mfu", default=0.4, type=_share, help="share of the GPU's peak (default: %(default)s, a guess)"
    )
    parser.add_argument("--budget-gpu-hours", type=float, help="end with 1 if what remains takes more")
    parser.add_argument("--json", action="store_true", help="all figures, a job each, as JSON")
    parser.set_defaults(func=run)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
