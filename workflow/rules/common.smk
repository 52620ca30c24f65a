"""What the rules share: the DAG of the chosen scale, and how a rule asks it for inputs and identity."""

import inspect
import os
import re
import sys
from functools import cache
from pathlib import Path

from snakemake.common import overwrite_function_params
from snakemake.dag import DAG
from snakemake.exceptions import WorkflowError
from snakemake.resources import Resource

from pipeline.dag.dag import STATE
from pipeline.dag.job import (
    Job as Artifact,
)  # Snakefiles share their names with Snakemake itself
from pipeline.dag.study import load
from pipeline.runtime.execution import Execution, programs_of_this_environment
from pipeline.runtime.scheduler import forward_notice
from pipeline.errors import PipelineError
from pipeline.artifacts.failures import check_folders, check_name
from pipeline.config.layouts import Layout, Layouts
from pipeline.planning.requests import needs
from pipeline.dag.stages import EVALUATIONS, STAGES, those
from pipeline.dag.survey import survey
from pipeline.dag.together import together, upstream

unknown = set(config) - {"scale"}
if unknown:
    raise WorkflowError(
        f"--config {', '.join(sorted(unknown))}: not known; the one key is `scale`"
    )

RESULTS = Path("results")
try:
    EXPERIMENT = load(config.get("scale"))
    LAYOUTS = {scale: Layouts.load(scale) for scale in EXPERIMENT.dags}
    for scale, dag in EXPERIMENT.dags.items():
        LAYOUTS[scale].check(dag.points, those(laid_out=True))
    SURVEY = survey(EXPERIMENT, RESULTS)
    for folder in (Path(), RESULTS, *(RESULTS / scale for scale in EXPERIMENT.dags)):
        check_name(folder)
    for root in (Path(), Path(STATE)):
        check_folders(RESULTS, [root / one.folder for one in SURVEY.unsettled])
except PipelineError as error:
    raise WorkflowError(str(error)) from None
NAME = EXPERIMENT.name  # of a scale, or studies/<name>
DAGS = EXPERIMENT.dags.values()


# Records decide what runs, not dates and not Snakemake's notes: artifacts may be made by hand, copied, or set aside, and
# the clocks of nodes, file servers and other machines may be off by hours. In Snakemake's terms:
#
#   ancient(path)   an input whose date is no reason to run. Those of a settled job are; the inputs of all other jobs need
#                   not be, since these jobs are forced.
#   update(path)    an output that Snakemake does not delete before its job begins. All records are: a launch beside
#                   this one, or a process that a kill left behind, may just have published the record.
#   forced          what the records call unsettled runs (force_unsettled), in place of what Snakemake's notes call
#                   incomplete.
#
# Nor does Snakemake look whether an output is dated before an input (accept_any_date): it would fail a job that was done.
async def force_unsettled(self):
    """In place of DAG.check_incomplete.

    A settled job that the notes call incomplete has published, and runs again to tidy up; but not yet if a settled job
    reads it and others are unsettled: Snakemake forgets jobs that come after a forced one and a settled one.
    """
    there = (one.record for one in SURVEY.unsettled if (RESULTS / one.record).exists())
    self.forcefiles.update(f"results/{record}" for record in there)
    made_by = {f"results/{one.record}": one for one in EXPERIMENT.jobs}
    for file in [] if self.ignore_incomplete else await self.incomplete_files():
        one = made_by.get(str(file))
        readers = (
            job for job in EXPERIMENT.jobs if one in EXPERIMENT.inputs(job).values()
        )
        if not SURVEY.unsettled or SURVEY.unsettled.issuperset(readers):
            self.forcefiles.add(file)


async def accept_any_date(self, job, expanded_output):
    """In place of DAG.check_output_mtime."""


DAG.check_incomplete, DAG.check_output_mtime = force_unsettled, accept_any_date

ON_GPU = Execution().on_gpu

# For those who run with --software-deployment-method conda. Ignored otherwise.
ENVIRONMENT = "../envs/cuda.yaml" if ON_GPU else "../envs/cpu.yaml"

# Jobs run in the environment that runs Snakemake, whether or not it is activated. SIGTERM, with which schedulers give
# notice, is for the stage (which sets a handler): its shell stays, or the job would be over before the stage has saved.
programs_of_this_environment()
shell.prefix("trap '' TERM; ")
if workflow.remote_exec:  # this is the Snakemake inside a cluster job
    forward_notice()

# A cluster's profile says how wide jobs run (layout_of). Snakemake reads profiles/default beside it, which says what one
# machine has, and would cut the jobs' requests down to that.
DEFAULTS = workflow.resource_settings.default_resources or {}
LAYOUT = DEFAULTS["layout"].raw if "layout" in DEFAULTS else None
if LAYOUT not in (None, "single", "released"):
    raise WorkflowError(
        f"--default-resources layout={LAYOUT}: it is `single` or `released`"
    )
if LAYOUT:
    for limit in ("mem_mb", "gpus"):
        workflow.global_resources[limit] = None


wildcard_constraints:
    scale="|".join(map(re.escape, [NAME, *EXPERIMENT.dags])),
    source="|".join(
        re.escape(name) for dag in DAGS for name in [*dag.datasets, *dag.benchmarks]
    ),
    point=r"d\d+-E\d+-k\d+-[^/]+",  # as Point.name makes them; each of thousands by itself would be tried for every path
    variant=r"base|grpo|step-\d+",


def signed(function):
    """The function, with its parameters noted where Snakemake looks first.

    For each job and call it would work them out anew: a tenth of the time that planning thousands of jobs takes.
    """
    parameters = dict(inspect.signature(function).parameters)
    parameters.pop("self", None)
    overwrite_function_params(function, parameters)
    return function


signed(Resource.evaluate)


def artifact(stage, wildcards):
    """The artifact that a rule's wildcards stand for."""
    return Artifact(stage, **dict(wildcards.items()))


def records(jobs, settled=False):
    """Paths of the jobs' records. Nothing about them is a reason to run for a reader that is `settled`."""
    paths = [f"results/{one.record}" for one in jobs]
    return [ancient(path) for path in paths] if settled else paths


def inputs_of(stage):
    """Input function of a stage's rule: the records of its upstream artifacts.

    A job that has to run also waits for its gates, and for the job that leads it; one that is settled does not, so that
    they are no reason to run it.
    """

    def read(wildcards):
        one = artifact(stage, wildcards)
        settled = one not in SURVEY.unsettled
        others = [] if settled else [*EXPERIMENT.gates(one), *leaders().get(one, [])]
        return records([*others, *EXPERIMENT.inputs(one).values()], settled)

    return signed(read)


def layout_of(one):
    """How wide a job runs: as config/layouts.yaml says under a cluster's profile, else as one process.

    Profiles switch by a default resource, `layout=released` or `layout=single`.
    """
    if LAYOUT is None and workflow.non_local_exec and not workflow.dryrun:
        raise WorkflowError(
            "--default-resources: `layout=released` (GPUs and nodes from config/layouts.yaml) or `layout=single` is "
            "missing; on the command line, --default-resources replaces all those of the profile"
        )
    released = LAYOUT == "released"
    wide = released and one.point and STAGES[one.stage].laid_out
    layout = LAYOUTS[one.scale].of(one.point, one.stage) if wide else Layout()
    return layout, released or ON_GPU


# What can be asked for by name (targets.smk): a stage (all its jobs), or a point (all its jobs).
NAMED = {}
for one in EXPERIMENT.jobs:
    for name in {one.stage, one.point} - {None, "report"}:
        NAMED.setdefault(name, []).append(one)


# What the command line asks for, as the Snakemake inside a cluster job is told it: that one knows its own job only.
TARGETS = "MOE_SPARSITY_TARGETS"
LONGEST = 100_000  # characters; Linux takes 128 KiB for a variable


def targets():
    """What the command line asks for; None where only part of the DAG may run, or nobody said."""
    settings = workflow.dag_settings
    if workflow.remote_exec:
        return os.environ[TARGETS].split() if os.environ.get(TARGETS) else None
    os.environ.pop(TARGETS, None)  # of a launch around this one
    said = " ".join(map(os.path.normpath, settings.targets)) or "all"
    if settings.until or settings.omit_from or settings.batch or len(said) > LONGEST:
        return None
    os.environ[TARGETS] = said
    workflow.register_envvars(TARGETS)  # for cluster jobs
    return said.split()


def asked(targets):
    """The jobs that they stand for, as far as names tell; all, where they do not."""
    names = {f"results/{one.record}": [one] for one in EXPERIMENT.jobs}
    names |= {"fetch": EXPERIMENT.fetches, "plan": []} | NAMED
    jobs = [names.get(target) for target in targets]
    if None in jobs:
        return set(EXPERIMENT.jobs)
    return upstream(EXPERIMENT, [one for each in jobs for one in each])


def was_begun(one):
    """Whether a job was begun and did not finish.

    It is made by itself: were it killed again (for want of memory, say), what it leads would never be made.
    """
    return any((RESULTS / STATE / one.folder).glob("work-*"))


@cache
def led():
    """The evaluations that lead others in this run -> those others.

    Known when the DAG is built, and not before: Snakemake reads the rules first.
    """
    if (names := targets()) is None:
        return {}
    to_make = asked(names) & SURVEY.unsettled
    evaluations = {
        one for one in to_make if one.stage in EVALUATIONS and not was_begun(one)
    }
    return together(EXPERIMENT, evaluations, lambda one: layout_of(one)[0])


@cache
def leaders():
    """Those others -> who leads them, in a list of one."""
    return {one: [leader] for leader, others in led().items() for one in others}


def then(stage):
    """Parameter function of an evaluation's rule: the stages that its job makes after its own."""

    def stages(wildcards):
        others = led().get(artifact(stage, wildcards), [])
        return ["--then", *(one.stage for one in others)] if others else []

    return signed(stages)


def need(stage, name):
    """Resource of a stage's rule: what its job asks for (pipeline/planning/requests.py), or a size of its layout.

    A function, where the value differs from job to job: each costs Snakemake 0.1 ms a job.
    """
    if LAYOUT != "released" and name in ("tp", "pp", "ep", "ranks"):
        return 1
    if LAYOUT != "released" and name in ("nodes", "gpus", "gres", "cores"):
        return getattr(needs(stage, None, Layout(), ON_GPU), name)

    def value(wildcards):
        one = artifact(stage, wildcards)
        layout, on_gpu = layout_of(one)
        if name in ("tp", "pp", "ep"):
            return getattr(layout, name)
        if name == "ranks":
            return layout.gpus_per_node
        known = EXPERIMENT.point(one) if one.point else None
        each = [
            needs(job.stage, known, layout, on_gpu)
            for job in (one, *led().get(one, []))
        ]
        values = [getattr(needed, name) for needed in each]
        return sum(values) if name == "runtime" else max(values)

    return signed(value)
