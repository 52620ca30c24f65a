"""What jobs take on the CPUs of one machine: stated times, memory, and when all is done on its cores.

    seconds of a process = start + work / rate

Work is FLOPs, and bytes of text for corpus and tokenize; starts and rates are those of the table of stages
(dag/stages.py).
"""

import os
from heapq import heapreplace
from statistics import median

from pipeline.dag.dag import Dag, Job
from pipeline.dag.stages import STAGES


def stated_hours(stage: str, work: float) -> float:
    """Hours of a process without any record to go by."""
    row = STAGES[stage].on_cpu
    return (row.start_s + work / row.rate) / 3600


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
    inputs = {job: [upstream for upstream in dag.inputs(job).values() if upstream in hours] for job in hours}
    free, ends = [0.0] * slots, dict[Job, float]()
    while len(ends) < len(hours):
        startable = [job for job in hours if job not in ends and all(upstream in ends for upstream in inputs[job])]
        ready = {job: max([free[0], *(ends[upstream] for upstream in inputs[job])]) for job in startable}
        job = min(startable, key=ready.__getitem__)
        ends[job] = ready[job] + hours[job]
        heapreplace(free, ends[job])
    return max(ends.values(), default=0.0)
