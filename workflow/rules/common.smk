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
from pipeline.errors import PipelineError

unknown = set(config) - {"scale"}
if unknown:
    raise WorkflowError(
        f"--config {', '.join(sorted(unknown))}: not known; the one key is `scale`"
    )

try:
    EXPERIMENT = Experiment.load(config.get("scale"))
except PipelineError as error:
    raise WorkflowError(str(error)) from None
SCALE = EXPERIMENT.name

# Records decide what runs, not dates and not Snakemake's notes: artifacts may be made by hand, copied, or set aside.
# An input that is settled is `ancient`, whatever its date; a job whose record is of another identity is given an input
# that is newer than any record: a file made now, gone when Snakemake ends.
RESULTS = Path("results")
SURVEY = EXPERIMENT.survey(RESULTS)
if SURVEY.unsettled and RESULTS.exists() and not os.access(RESULTS, os.W_OK):
    raise WorkflowError(
        f"{RESULTS}: cannot be written; make it writable for this user, or its disk"
    )
NOW = tempfile.NamedTemporaryFile(prefix="moe-sparsity-") if SURVEY.stale else None

# A job of an engine takes one GPU where there is one; the profile says how many this machine has.
ON_GPU = shutil.which("nvidia-smi") is not None
GPUS = 1 if ON_GPU else 0

# For those who run with --software-deployment-method conda. Ignored otherwise.
ENVIRONMENT = "../envs/cuda.yaml" if ON_GPU else "../envs/cpu.yaml"

# Jobs run in the environment that runs Snakemake, whether or not it is activated.
shell.prefix(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; ")


wildcard_constraints:
    source="|".join(map(re.escape, EXPERIMENT.datasets)),
    point="|".join(map(re.escape, EXPERIMENT.points)),
    variant="base|grpo",


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
    """Input function of a stage's rule: the records of its upstream artifacts, and NOW if its own is stale."""

    def upstream(wildcards):
        one = artifact(stage, wildcards)
        now = [NOW.name] if one in SURVEY.stale else []
        return records(EXPERIMENT.inputs(one).values()) + now

    return upstream
