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
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from pipeline import costs, memory
from pipeline.cli import add_common
from pipeline.dag import Dag, Job
from pipeline.grid import Point
from pipeline.layouts import Layout, Layouts
from pipeline.memory import GB, GPUS, Gpu

SERVING = 0.25  # share of --mfu that stages on vLLM are taken to reach; an assumption
COMPUTING = ("pretrain", "grpo", "benchmark", "decode", "taskloss")
CPU = "cpu"


@dataclass
class Cost:
    """One job: what it takes, and whether it remains."""

    job: Job
    layout: Layout
    flops: float
    disk: float  # bytes of its artifact
    memory: float  # bytes, on the GPU that needs most
    remains: bool
    actual_h: float | None = None  # GPU-hours (CPU process hours) that its record says, on this kind of device
    predicted_h: float | None = None  # None: no rate is known

    def describe(self) -> dict[str, Any]:
        """For --json."""
        job = {key: value for key, value in asdict(self.job).items() if value is not None and key != "scale"}
        return job | {
            "remains": self.remains,
            "layout": self.layout.model_dump(),
            "flops": self.flops,
            "gpu_hours": self.predicted_h,
            "actual_gpu_hours": self.actual_h,
            "memory_gb": self.memory / GB,
            "disk_gb": self.disk / GB,
        }


@dataclass
class Plan:
    """All of a scale's jobs that compute or store much, and what is wrong with them."""

    dag: Dag
    device: str
    mfu: float
    jobs: list[Cost]
    refusals: list[str] = field(default_factory=list)

    @property
    def remaining_h(self) -> float | None:
        """GPU-hours of what remains; None where no rate is known."""
        hours = [cost.predicted_h for cost in self.jobs if cost.remains and cost.job.stage in COMPUTING]
        return None if None in hours else sum(h for h in hours if h is not None)

    def of_point(self, point: str) -> list[Cost]:
        return [cost for cost in self.jobs if cost.job.point == point]


def make(dag: Dag, layouts: Layouts, results: Path, device: str, mfu: float) -> Plan:
    """Cost every job of a scale. Reads records, writes nothing."""
    layouts.check(dag.points)
    jobs = [_cost(dag, job, layouts, results, device) for job in dag.jobs]
    rate_all = _rates(jobs)
    for cost in jobs:
        if cost.job.stage not in COMPUTING:
            continue
        others = _rates([one for one in jobs if one is not cost]) if cost.actual_h else rate_all
        rate = others.get(cost.job.stage) or _stated(device, mfu, cost.job.stage)
        cost.predicted_h = cost.flops / rate / 3600 if rate else None
    refusals = [_refusal(dag, cost, GPUS[device]) for cost in jobs if device in GPUS and cost.remains]
    return Plan(dag, device, mfu, jobs, [said for said in refusals if said])


def _stated(device: str, mfu: float, stage: str) -> float | None:
    """FLOP/s a GPU at the stated MFU."""
    share = 1.0 if stage == "pretrain" else SERVING
    return GPUS[device].flops * mfu * share if device in GPUS else None


def _rates(jobs: list[Cost]) -> dict[str, float]:
    """FLOP/s a process that each stage reached, median over its finished jobs."""
    reached = defaultdict(list)
    for cost in jobs:
        if cost.actual_h:
            reached[cost.job.stage].append(cost.flops / cost.actual_h / 3600)
    return {stage: median(rates) for stage, rates in reached.items()}


def _cost(dag: Dag, job: Job, layouts: Layouts, results: Path, device: str) -> Cost:
    point = dag.points[job.point] if job.point else None
    layout = layouts.of(job.point, job.stage) if job.point and job.stage in COMPUTING else Layout.model_validate({})
    try:
        record = json.loads((results / job.record).read_bytes())
        remains = record["fingerprint"] != dag.fingerprint(job)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        record, remains = {}, True
    flops = gpu_bytes = 0.0
    if point is not None and job.stage in COMPUTING:
        flops = costs.flops(dag.scale, point, job.stage)
        gpu_bytes = memory.needed(dag.scale, point, job.stage, layout).total
    kept = costs.disk(dag, job) if remains else float(sum(entry["bytes"] for entry in record["outputs"]))
    cost = Cost(job, layout, flops, kept, gpu_bytes, remains)
    if job.stage in COMPUTING and not remains:
        cost.actual_h = _actual_hours(record, device, flops, point)
    return cost


def _actual_hours(record: dict[str, Any], device: str, flops: float, point: Point | None) -> float | None:
    """Hours times processes of a finished job on this kind of device.

    Of pre-training by its tokens a second, since `wall_s` is only that of its last launch.
    """
    ran, timing = record.get("execution", {}), record.get("timing", {})
    if ran.get("device") != (CPU if device == CPU else "cuda"):
        return None
    card = str(record.get("hardware", {}).get("gpu") or "").lower()
    if card and device not in card:
        return None
    processes = ran.get("ranks", 1) * ran.get("nodes", 1)
    if point is not None and record["stage"] == "pretrain" and timing.get("tokens_per_s"):
        return flops / (timing["tokens_per_s"] * point.flops_per_token) / 3600 * processes
    return float(record["wall_s"]) / 3600 * processes


def _refusal(dag: Dag, cost: Cost, gpu: Gpu) -> str | None:
    """What is said of a layout that cannot be: why, and what would fit."""
    if cost.job.stage not in COMPUTING or cost.job.point is None:
        return None
    point, layout = dag.points[cost.job.point], cost.layout
    pretrain = cost.job.stage == "pretrain"
    if pretrain and (why := memory.misfit(point, layout)):
        return f"{cost.job.label}: layout {layout} cannot cut the model: {why}"
    if cost.memory <= gpu.usable:
        return None
    said = (
        f"{cost.job.label}: layout {layout} needs {cost.memory / GB:.0f} GB on a GPU, "
        f"and of the {gpu.name}'s {gpu.memory / GB:.0f} GB {gpu.usable / GB:.0f} can be planned with"
    )
    fits = next(memory.alternatives(dag.scale, point, cost.job.stage, layout, gpu), None)
    return f"{said}; would fit: {fits}" if fits else f"{said}; no layout that was tried fits"


# ------------------------------------------------------------------------------------------------------------ text


def table(plan: Plan) -> list[str]:
    """The plan for people: a row a point, totals, predicted against actual, refusals."""
    stages = [stage for stage in COMPUTING if any(cost.job.stage == stage for cost in plan.jobs)]
    unit = "process-hours" if plan.device == CPU else "GPU-hours"
    head = ["point", "total", "active", "TPP", "FLOPs", "layout", "GB/GPU", *stages, "disk GB", "remains"]
    rows = []
    for name, point in plan.dag.points.items():
        own = plan.of_point(name)
        (pretrain,) = (cost for cost in own if cost.job.stage == "pretrain")
        hours = [_hours([cost for cost in own if cost.job.stage == stage]) for stage in stages]
        left = list(dict.fromkeys(cost.job.stage for cost in own if cost.remains))
        every = len(left) == len({cost.job.stage for cost in own})
        figures = [f"{point.total_params:,}", f"{point.active_params:,}", f"{point.tokens_per_param:.1f}"]
        figures += [f"{costs.pretrain_flops(point):.2e}", str(pretrain.layout), f"{pretrain.memory / GB:.1f}"]
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
    return [*lines, "", *totals(plan, stages, unit), *calibration(plan, unit), *plan.refusals]


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
        rate = median(cost.flops / (cost.actual_h or 1) / 3600 for cost in found)
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
