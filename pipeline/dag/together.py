"""Which evaluations of a checkpoint one process makes, so that its engine starts once.

The first of them, the leader, makes all. The others wait for it, and find themselves made; what the leader could not
make, they make by themselves. Each keeps its artifact, its record and its identity, whoever made it.
"""

from collections.abc import Callable, Collection, Hashable, Iterable

from pipeline.dag.experiment import Experiment
from pipeline.dag.job import Job
from pipeline.dag.stages import STAGES


def upstream(experiment: Experiment, jobs: Iterable[Job]) -> set[Job]:
    """The jobs, and all that they are made from."""
    found: set[Job] = set()
    waiting = list(jobs)
    while waiting:
        if (job := waiting.pop()) not in found:
            found.add(job)
            waiting += experiment.inputs(job).values()
    return found


def together(
    experiment: Experiment, to_make: Collection[Job], alike: Callable[[Job], Hashable] = lambda job: None
) -> dict[Job, list[Job]]:
    """The jobs that lead others -> those others, in the order of the stages.

    Args:
        to_make: the jobs that will run; others lead nobody and follow nobody.
        alike: jobs that differ in this are made apart (in how wide they run, say).
    """
    groups: dict[Hashable, list[Job]] = {}
    for job in experiment.jobs:  # upstream first, so in the order of the stages
        if STAGES[job.stage].answer and job in to_make:
            groups.setdefault((job.scale, job.point, job.variant, alike(job)), []).append(job)
    return {leader: others for leader, *others in groups.values() if others}
