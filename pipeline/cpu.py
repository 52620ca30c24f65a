"""What jobs take on the CPUs of one machine: stated times, memory, and when all is done on its cores.

    seconds of a process = start + work / rate

Work is FLOPs, and bytes of text for corpus and tokenize. `STATED` is rounded from runs of scales `smoke` and `mini` on
two cores (docs/VALIDATION.md), where the start of an engine is most of an evaluation and the matrices are tiny: larger
models reach higher rates.
"""

import os
from heapq import heapreplace
from math import inf
from statistics import median

from pipeline.dag import Dag, Job

STATED: dict[str, tuple[float, float]] = {  # stage -> seconds to start and end, FLOPs or bytes a second
    "corpus": (4, 156e6),
    "benchdata": (10, inf),
    "tokenizer": (6, inf),
    "tokenize": (8, 13.9e6),
    "preflight": (5, inf),
    "pretrain": (8, 1.15e10),
    "convert": (10, inf),
    "adopt": (10, inf),
    "grpo": (90, 5e9),
    "benchmark": (20, 3e9),
    "decode": (16, 3e9),
    "taskloss": (15, 3e9),
    "table": (3, inf),
    "figures": (6, inf),
    "report": (3, inf),
}


def stated_hours(stage: str, work: float) -> float:
    """Hours of a process without any record to go by."""
    start, rate = STATED[stage]
    return (start + work / rate) / 3600


def pace(actual_to_stated: list[float]) -> float:
    """How many times the stated time a stage takes here: the median over its finished jobs, 1 without any."""
    return median(actual_to_stated) if actual_to_stated else 1.0


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def memory_bytes() -> int:
    """The machine's."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def elapsed_hours(dag: Dag, hours: dict[Job, float], slots: int) -> float:
    """When the last job ends if `slots` run at a time, each as soon as its inputs are there, upstream first.

    Args:
        hours: what each job that remains takes; the others are there.
    """
    inputs = {job: [one for one in dag.inputs(job).values() if one in hours] for job in hours}
    free, ends = [0.0] * slots, dict[Job, float]()
    while len(ends) < len(hours):
        startable = [job for job in hours if job not in ends and all(one in ends for one in inputs[job])]
        ready = {job: max([free[0], *(ends[one] for one in inputs[job])]) for job in startable}
        job = min(startable, key=lambda one: ready[one])
        ends[job] = ready[job] + hours[job]
        heapreplace(free, ends[job])
    return max(ends.values(), default=0.0)
