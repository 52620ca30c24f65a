"""What jobs take on the CPUs of one machine: stated times, memory, and when all is done on its cores.

    seconds of a process = start + work / rate

Work is FLOPs, and bytes of text for corpus and tokenize; starts and rates are those of the table of stages
(dag/stages.py).
"""

import os
from heapq import heapify, heappop, heappush, heapreplace

from pipeline.dag.dag import Dag, Job
from pipeline.dag.stages import STAGES


def stated_hours(stage: str, work: float) -> float:
    """Hours of a process without any record to go by."""
    row = STAGES[stage].on_cpu
    return (row.start_s + work / row.rate) / 3600


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
    reads = {job: [upstream for upstream in dag.inputs(job).values() if upstream in hours] for job in hours}
    readers: dict[Job, list[Job]] = {job: [] for job in hours}
    for job, upstreams in reads.items():
        for upstream in upstreams:
            readers[upstream].append(job)
    order = {job: i for i, job in enumerate(hours)}
    missing, released = {job: len(upstreams) for job, upstreams in reads.items()}, dict.fromkeys(hours, 0.0)
    # (when its inputs are there, place, job) of those whose inputs have an end; (place, job) of those that could begin.
    waiting = [(0.0, order[job], job) for job in hours if not reads[job]]
    startable: list[tuple[int, Job]] = []
    free, last = [0.0] * slots, 0.0
    heapify(waiting)
    while waiting or startable:
        while waiting and (not startable or waiting[0][0] <= free[0]):
            heappush(startable, heappop(waiting)[1:])
        _, job = heappop(startable)
        end = max(free[0], released[job]) + hours[job]
        heapreplace(free, end)
        last = max(last, end)
        for reader in readers[job]:
            missing[reader] -= 1
            released[reader] = max(released[reader], end)
            if not missing[reader]:
                heappush(waiting, (released[reader], order[reader], reader))
    return last
