"""Which artifacts of a scale have to be made, by their records: what Snakemake's rules, `why` and `status` go by."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.artifacts.record import Record
from pipeline.dag.experiment import Experiment
from pipeline.dag.job import Job


@dataclass(frozen=True)
class Survey:
    """What a scale's records say.

    Attributes:
        recorded: jobs that have a record.
        stale: jobs with a record of another identity, or made from other inputs, or from other content than their
            inputs have now.
        unsettled: those, the jobs without a record, and all that is downstream of either.
    """

    recorded: frozenset[Job]
    stale: frozenset[Job]
    unsettled: frozenset[Job]


class Identity(NamedTuple):
    """What of a record decides whether its artifact is still the one asked for."""

    fingerprint: str
    content: str
    inputs: dict[str, str]  # role -> content of the upstream artifact it was made from


def survey(dag: Experiment, results: Path) -> Survey:
    """Compare every job with its record below `results`. Reads records only; checks no file."""
    recorded: dict[Job, Identity | None] = {}
    for job in dag.jobs:
        try:
            record = Record.parse((results / job.record).read_text())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except ValueError:
            recorded[job] = None  # not a record
            continue
        contents = {entry.name: entry.content for entry in record.inputs}
        recorded[job] = Identity(record.fingerprint, record.content, contents)
    stale = {job for job, identity in recorded.items() if not _is_current(dag, job, identity, recorded)}
    unsettled: set[Job] = set()
    for job in dag.jobs:  # upstream first
        if job not in recorded or job in stale or not unsettled.isdisjoint(dag.inputs(job).values()):
            unsettled.add(job)
    return Survey(frozenset(recorded), frozenset(stale), frozenset(unsettled))


def _is_current(dag: Experiment, job: Job, identity: Identity | None, recorded: dict[Job, Identity | None]) -> bool:
    """Whether a record is of the job as the configuration has it, made from its inputs as they are now."""
    upstream = dag.inputs(job)
    if identity is None or identity.fingerprint != dag.fingerprint(job):
        return False
    if set(upstream) != set(identity.inputs):
        return False  # an input came or went that is no part of the identity (`Dag.screens`)
    for role, input_job in upstream.items():
        if input_job in recorded:
            now = recorded[input_job]
            if now is None or now.content != identity.inputs[role]:
                return False  # it was made again and came out otherwise, as on a GPU
    return True
