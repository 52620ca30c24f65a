"""Which artifacts of a scale have to be made, by their records: what Snakemake's rules, `why` and `status` go by."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.artifact import Record
from pipeline.dag import Dag, Job


@dataclass(frozen=True)
class Survey:
    """What a scale's records say.

    Attributes:
        stale: jobs with a record of another identity, or made from other inputs, or from other content than their
            inputs have now.
        unsettled: those, the jobs without a record, and all that is downstream of either.
    """

    stale: frozenset[Job]
    unsettled: frozenset[Job]


def survey(dag: Dag, results: Path) -> Survey:
    """Compare every job with its record below `results`. Reads records only; checks no file."""
    found: dict[Job, tuple[str, str, dict[str, str]] | None] = {}
    for job in dag.jobs:
        try:
            record = Record.parse((results / job.record).read_text())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except ValueError:
            found[job] = None  # not a record
            continue
        found[job] = (record.fingerprint, record.content, {entry.name: entry.content for entry in record.inputs})
    stale: set[Job] = set()
    unsettled: set[Job] = set()
    for job in dag.jobs:  # upstream first
        upstream = dag.inputs(job)
        made = found.get(job)
        if job in found and (made is None or made[0] != dag.fingerprint(job)):
            stale.add(job)
        elif made is not None and set(upstream) != set(made[2]):
            stale.add(job)  # an input came or went that is no part of its identity (`Dag.screens`)
        elif made is not None:
            now = {name: found[one] for name, one in upstream.items() if one in found}
            if any(have is None or have[1] != made[2].get(name) for name, have in now.items()):
                stale.add(job)  # its input was made again and came out otherwise, as on a GPU
        if job not in found or job in stale or not unsettled.isdisjoint(upstream.values()):
            unsettled.add(job)
    return Survey(frozenset(stale), frozenset(unsettled))
