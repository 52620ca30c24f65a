"""What each job of a scale is expected to take, from formulas and from the records of finished jobs.

    hours x processes = FLOPs / rate

The rate of a stage, FLOP/s of a process, is the median its finished jobs of this scale reached on the same kind of
device; without any, the stated MFU of the GPU's peak, and a quarter of it for stages on vLLM.
"""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from pipeline import costs, memory
from pipeline.dag import Dag, Job
from pipeline.grid import Point
from pipeline.layouts import Layout, Layouts
from pipeline.memory import GB, GPUS, Gpu

SERVING = 0.25  # share of the stated MFU that stages on vLLM are taken to reach; an assumption
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
    rate_all = rates(jobs)
    for cost in jobs:
        if cost.job.stage not in COMPUTING:
            continue
        others = rates([one for one in jobs if one is not cost]) if cost.actual_h else rate_all
        rate = others.get(cost.job.stage) or _stated(device, mfu, cost.job.stage)
        cost.predicted_h = cost.flops / rate / 3600 if rate else None
    refusals = [_refusal(dag, cost, GPUS[device]) for cost in jobs if device in GPUS and cost.remains]
    return Plan(dag, device, mfu, jobs, [said for said in refusals if said])


def _stated(device: str, mfu: float, stage: str) -> float | None:
    """FLOP/s a GPU at the stated MFU."""
    share = 1.0 if stage == "pretrain" else SERVING
    return GPUS[device].flops * mfu * share if device in GPUS else None


def rates(jobs: list[Cost]) -> dict[str, float]:
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
