"""What the rules share: the DAG of the chosen scale, and how a rule asks it for inputs and identity."""

import os
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from snakemake.exceptions import WorkflowError

from pipeline.dag import (
    Dag as Experiment,
)  # Snakefiles share their names with Snakemake itself
from pipeline.dag import Job as Artifact
from pipeline.engines.scheduler import forward_notice
from pipeline.errors import PipelineError
from pipeline.layouts import STAGES as LAID_OUT
from pipeline.layouts import Layout, Layouts
from pipeline.needs import needs
from pipeline.survey import survey

unknown = set(config) - {"scale"}
if unknown:
    raise WorkflowError(
        f"--config {', '.join(sorted(unknown))}: not known; the one key is `scale`"
    )

try:
    EXPERIMENT = Experiment.load(config.get("scale"))
    LAYOUTS = Layouts.load(EXPERIMENT.name)
    LAYOUTS.check(EXPERIMENT.points)
except PipelineError as error:
    raise WorkflowError(str(error)) from None
SCALE = EXPERIMENT.name

# Records decide what runs, not dates and not Snakemake's notes: artifacts may be made by hand, copied, or set aside.
# An input that is settled is `ancient`, whatever its date; a job whose record is of another identity is given an input
# that is newer than any record: a file made now, gone when Snakemake ends, and here, where a cluster's nodes see it.
RESULTS = Path("results")
SURVEY = survey(EXPERIMENT, RESULTS)
if SURVEY.unsettled and RESULTS.exists() and not os.access(RESULTS, os.W_OK):
    raise WorkflowError(
        f"{RESULTS}: cannot be written; make it writable for this user, or its disk"
    )
NOW = None
if SURVEY.stale:
    Path(".snakemake").mkdir(exist_ok=True)
    NOW = tempfile.NamedTemporaryFile(prefix="now-", dir=".snakemake")

ON_GPU = shutil.which("nvidia-smi") is not None

# For those who run with --software-deployment-method conda. Ignored otherwise.
ENVIRONMENT = "../envs/cuda.yaml" if ON_GPU else "../envs/cpu.yaml"

# Jobs run in the environment that runs Snakemake, whether or not it is activated. SIGTERM, with which schedulers give
# notice, is for the stage (which sets a handler): its shell stays, or the job would be over before the stage has saved.
shell.prefix(
    f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; trap '' TERM; "
)
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
    source="|".join(map(re.escape, [*EXPERIMENT.datasets, *EXPERIMENT.benchmarks])),
    point="|".join(map(re.escape, EXPERIMENT.points)),
    variant=r"base|grpo|step-\d+",


def artifact(stage, wildcards):
    """The artifact that a rule's wildcards stand for."""
    return Artifact(stage, SCALE, **dict(wildcards.items()))


def records(jobs):
    """Paths of the jobs' records; settled ones are no reason to run what reads them."""
    paths = {one: f"results/{one.record}" for one in jobs}
    return [
        path if one in SURVEY.unsettled else ancient(path)
        for one, path in paths.items()
    ]


def inputs_of(stage):
    """Input function of a stage's rule: the records of its upstream artifacts, and NOW if its own is stale.

    A job that has to run also waits for its gates; one that is settled does not, so that they are no reason to run it.
    """

    def upstream(wildcards):
        one = artifact(stage, wildcards)
        now = (
            [str(Path(".snakemake", Path(NOW.name).name))]
            if one in SURVEY.stale
            else []
        )
        gates = EXPERIMENT.gates(one) if one in SURVEY.unsettled else []
        return records([*gates, *EXPERIMENT.inputs(one).values()]) + now

    return upstream


def layout_of(stage, point):
    """How wide a job runs: as config/layouts.yaml says under a cluster's profile, else as one process.

    Profiles switch by a default resource, `layout=released` or `layout=single`.
    """
    if LAYOUT is None and workflow.non_local_exec and not workflow.dryrun:
        raise WorkflowError(
            "--default-resources: `layout=released` (GPUs and nodes from config/layouts.yaml) or `layout=single` is "
            "missing; on the command line, --default-resources replaces all those of the profile"
        )
    released = LAYOUT == "released"
    wide = released and point and stage in LAID_OUT
    layout = LAYOUTS.of(point, stage) if wide else Layout()
    return layout, released or ON_GPU


def need(stage, name):
    """Resource function of a stage's rule: what its job asks for (pipeline/needs.py), or a size of its layout."""

    def value(wildcards):
        point = wildcards.get("point")
        layout, on_gpu = layout_of(stage, point)
        if name in ("tp", "pp", "ep"):
            return getattr(layout, name)
        if name == "ranks":
            return layout.gpus_per_node
        known = EXPERIMENT.points[point] if point else None
        return getattr(needs(stage, known, layout, on_gpu), name)

    return value
