"""What each job of a scale is expected to take, from formulas and from the records of finished jobs.

    hours x GPUs = FLOPs / rate

The rate of a stage, FLOP/s per GPU, is the median that its finished jobs of this scale reached on the same kind of
device; without any, the stated MFU of the GPU's peak, or that measured at the width, and a quarter of it for stages on
vLLM. On CPUs, where the start of an engine counts, a job takes its stated time (cpu.py) times the median ratio of
actual to stated time of its stage's finished jobs.
"""

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median, mode
from typing import Any

from pipeline.config.layouts import Layout, Layouts
from pipeline.dag.dag import Dag, Job
from pipeline.dag.point import Point
from pipeline.dag.stages import STAGES, those
from pipeline.planning import costs, cpu, gpu_memory
from pipeline.planning.gpu_memory import GB, GPUS, MIB
from pipeline.runtime.execution import gpus_here

# Hidden size -> MFU of pre-training on one H200, without communication: means over 8 and 64 experts of the table in
# docs/PERFORMANCE.md, at 2048 of 8 alone (of 64, four layers fit there, and the optimizer takes most of the step).
MEASURED_MFU = {512: 0.41, 1024: 0.46, 2048: 0.55}
SERVING = 0.25  # share of pre-training's MFU that stages on vLLM are taken to reach; an assumption
COMPUTING = those(computes=True)
CPU = "cpu"


@dataclass
class Cost:
    """One job: what it takes, and whether it remains."""

    job: Job
    layout: Layout
    flops: float
    disk: float  # bytes of its artifact
    memory: float  # bytes, on the GPU that needs most, or of a CPU process
    remains: bool
    actual_h: float | None = None  # GPU-hours (CPU process hours) that its record says, on this kind of device
    predicted_h: float = 0.0

    def describe(self, unit: str) -> dict[str, Any]:
        """For --json; `unit` is what hours are called."""
        job = {key: value for key, value in asdict(self.job).items() if value is not None and key != "scale"}
        return job | {
            "remains": self.remains,
            "layout": self.layout.model_dump(),
            "flops": self.flops,
            unit: self.predicted_h,
            f"actual_{unit}": self.actual_h,
            "memory_gb": self.memory / GB,
            "disk_gb": self.disk / GB,
        }


@dataclass
class Plan:
    """All of a scale's jobs that compute or store much, and what is wrong with them."""

    dag: Dag
    device: str
    mfu: dict[int, float]  # of pre-training, by hidden size
    mfu_is_stated: bool  # or as measured
    jobs: list[Cost]
    refusals: list[str] = field(default_factory=list)

    @property
    def on_cpu(self) -> bool:
        return self.device == CPU

    @property
    def remaining_h(self) -> float:
        """Of what remains: GPU-hours, or hours of CPU processes."""
        return sum(cost.predicted_h for cost in self.jobs if cost.remains)

    @property
    def elapsed_h(self) -> float:
        """Hours until what remains is done on this machine's cores (CPU plans)."""
        return cpu.elapsed_hours(self.dag, {c.job: c.predicted_h for c in self.jobs if c.remains}, cpu.cores())

    @cached_property
    def of_point(self) -> dict[str, list[Cost]]:
        found = defaultdict(list)
        for cost in self.jobs:
            if cost.job.point:
                found[cost.job.point].append(cost)
        return found


def make(dag: Dag, layouts: Layouts, results: Path, device: str, mfu: float | None = None) -> Plan:
    """Cost every job of a scale. Reads records, writes nothing."""
    layouts.check(dag.points, those(laid_out=True))
    jobs = [_cost(dag, job, layouts, results, device) for job in dag.jobs]
    shares = {hidden: mfu or measured_mfu(hidden) for hidden in sorted({p.hidden for p in dag.points.values()})}
    measured = paces(dag, jobs) if device == CPU else rates(jobs)
    for cost in jobs:  # by the finished jobs of its stage without its own, so that a prediction can be checked
        others, stage = measured.get(cost.job.stage, []), cost.job.stage
        if device == CPU:
            stated_h = stated_on_cpu(dag, cost)
            cost.predicted_h = stated_h * (_median(others, cost.actual_h and cost.actual_h / stated_h) or 1.0)
        elif stage in COMPUTING:
            reached = _median(others, cost.actual_h and cost.flops / cost.actual_h / 3600)
            assert cost.job.point
            share = shares[dag.points[cost.job.point].hidden]
            stated = GPUS[device].flops * share * (1.0 if stage == "pretrain" else SERVING)
            cost.predicted_h = cost.flops / (reached or stated) / 3600
    refusals = [_refusal(dag, cost, device) for cost in jobs if cost.remains]
    return Plan(dag, device, shares, mfu is not None, jobs, [refusal for refusal in refusals if refusal])


def device_of(dag: Dag, layouts: Layouts, results: Path) -> str:
    """The kind of device a scale is for: that of its records; a GPU where config/layouts.yaml lays it out for some or
    this machine has one; else CPUs.
    """
    used = []
    for job in dag.jobs:
        record = {} if job.stage not in COMPUTING else _record(results, job)
        if record and record["fingerprint"] == dag.fingerprint(job) and record.get("execution"):
            card = str(record.get("hardware", {}).get("gpu") or "")
            used.append(CPU if record["execution"].get("device") == CPU else _kind(card))
    if used:
        return mode(used)
    here = gpus_here()
    return CPU if not here and not layouts.laid_out else _kind(here[0] if here and not layouts.laid_out else "")


def _kind(card: str) -> str:
    """The known kind of GPU that a name as nvidia-smi gives it stands for; where it is none, the paper's."""
    return next((kind for kind in GPUS if kind in card.lower()), "h200")


def stated_on_cpu(dag: Dag, cost: Cost) -> float:
    """Hours of a CPU process that a job takes by its formula alone."""
    return cpu.stated_hours(cost.job.stage, cost.flops or costs.text_bytes(dag, cost.job))


def paces(dag: Dag, jobs: list[Cost]) -> dict[str, list[float]]:
    """How many times its stated time each finished job took on CPUs: by stage, ascending."""
    return _by_stage(jobs, lambda cost, actual_h: actual_h / stated_on_cpu(dag, cost))


def rates(jobs: list[Cost]) -> dict[str, list[float]]:
    """FLOP/s per process that each finished job reached: by stage, ascending."""
    return _by_stage(jobs, lambda cost, actual_h: cost.flops / actual_h / 3600)


def _by_stage(jobs: list[Cost], measure: Callable[[Cost, float], float]) -> dict[str, list[float]]:
    found = defaultdict(list)
    for cost in jobs:
        if cost.actual_h:
            found[cost.job.stage].append(measure(cost, cost.actual_h))
    return {stage: sorted(values) for stage, values in found.items()}


def _median(ordered: list[float], without: float | None) -> float | None:
    """Of ascending values but one; None if there are none. Never quadratic in what thousands of jobs compare."""
    if without:
        place = bisect_left(ordered, without)
        ordered = ordered[:place] + ordered[place + 1 :]
    return median(ordered) if ordered else None


def measured_mfu(hidden: int) -> float:
    """MFU at the nearest width that was measured, by ratio."""
    return MEASURED_MFU[min(MEASURED_MFU, key=lambda width: max(width / hidden, hidden / width))]


def _record(results: Path, job: Job) -> dict[str, Any]:
    """A job's record; empty where there is none that can be read."""
    try:
        record = json.loads((results / job.record).read_bytes())
        return record if isinstance(record, dict) and isinstance(record.get("fingerprint"), str) else {}
    except (FileNotFoundError, ValueError):
        return {}


def _cost(dag: Dag, job: Job, layouts: Layouts, results: Path, device: str) -> Cost:
    point = dag.points[job.point] if job.point else None
    layout = layouts.of(job.point, job.stage) if job.point and job.stage in COMPUTING else Layout.model_validate({})
    record = _record(results, job)
    remains = not record or record["fingerprint"] != dag.fingerprint(job)
    flops = used_bytes = 0.0
    if point is not None and job.stage in COMPUTING:
        flops = costs.flops(dag.scale, point, job.stage)
        used_bytes = gpu_memory.needed(dag.scale, point, job.stage, layout).total
    if device == CPU:
        used_bytes += STAGES[job.stage].request.base_mb * MIB
    kept = costs.disk(dag, job) if remains else float(sum(entry["bytes"] for entry in record["outputs"]))
    cost = Cost(job, layout, flops, kept, used_bytes, remains)
    if not remains and (device == CPU or job.stage in COMPUTING):
        cost.actual_h = _actual_hours(record, device, flops, point)
    return cost


def _actual_hours(record: dict[str, Any], device: str, flops: float, point: Point | None) -> float | None:
    """Hours times processes of a finished job on this kind of device.

    Of pre-training by its tokens a second (on CPUs, and its start), since `wall_s` is only that of its last launch.
    """
    ran, timing = record.get("execution", {}), record.get("timing", {})
    if ran.get("device") != (CPU if device == CPU else "cuda"):
        return None
    card = str(record.get("hardware", {}).get("gpu") or "").lower()
    if card and device not in card:
        return None
    processes = ran.get("ranks", 1) * ran.get("nodes", 1)
    if point is not None and record["stage"] == "pretrain" and timing.get("tokens_per_s"):
        start_s = STAGES["pretrain"].on_cpu.start_s if device == CPU else 0.0
        return (start_s + flops / (timing["tokens_per_s"] * point.flops_per_token)) / 3600 * processes
    return float(record["wall_s"]) / 3600 * processes


def _refusal(dag: Dag, cost: Cost, device: str) -> str | None:
    """Why a job cannot run, and which layout would fit; None if it can."""
    if device == CPU:
        has = cpu.memory_bytes()
        message = (
            f"{cost.job.label}: needs {cost.memory / GB:,.0f} GB of memory, and this machine has {has / GB:,.0f} GB"
        )
        return message if cost.memory > has else None
    if cost.job.stage not in COMPUTING or cost.job.point is None:
        return None
    gpu = GPUS[device]
    point, layout = dag.points[cost.job.point], cost.layout
    pretrain = cost.job.stage == "pretrain"
    if pretrain and (why := gpu_memory.misfit(point, layout)):
        return f"{cost.job.label}: layout {layout} cannot cut the model: {why}"
    if cost.memory <= gpu.usable:
        return None
    message = (
        f"{cost.job.label}: layout {layout} needs {cost.memory / GB:.0f} GB on a GPU, "
        f"and of the {gpu.name}'s {gpu.memory / GB:.0f} GB {gpu.usable / GB:.0f} can be planned with"
    )
    fits = next(gpu_memory.alternatives(dag.scale, point, cost.job.stage, layout, gpu), None)
    return f"{message}; would fit: {fits}" if fits else f"{message}; no layout that was tried fits"
