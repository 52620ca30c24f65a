"""What the command lines of `python -m pipeline` share: the configuration they look at and the jobs they mean."""

import argparse
from pathlib import Path

from pipeline.dag.experiment import Experiment
from pipeline.dag.job import Job
from pipeline.dag.study import STUDIES, load
from pipeline.errors import PipelineError


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options of every verb."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--scale", help="a scale of the grid file (default: the file's own, or the target's), or studies/NAME"
    )
    add_config(parser)
    parser.add_argument("--results", default="results", type=Path, help="results folder (default: %(default)s)")


def add_config(parser: argparse.ArgumentParser) -> None:
    """The option that names the grid file."""
    parser.add_argument("--config", default="config/grid.yaml", help="the grid file (default: %(default)s)")


def chosen(args: argparse.Namespace) -> tuple[Experiment, list[Job]]:
    """The DAG, and the jobs a verb's optional `target` means: all, a stage's, a point's, a source's, or one.

    A target may be the path of an artifact, its record or any of its files, which also tells the scale.

    Raises:
        PipelineError: nothing has this name.
    """
    target = getattr(args, "target", None)
    inside: Path | None = None
    if target and (path := Path(target)).absolute().is_relative_to(args.results.absolute()):
        inside = path.absolute().relative_to(args.results.absolute())
    depth = 2 if inside and inside.parts[:1] == (STUDIES,) else 1
    dag = load(args.scale or ("/".join(inside.parts[:depth]) if inside else None) or None, args.config)
    if not target or inside == Path(dag.name):
        return dag, dag.jobs
    if inside is not None:
        jobs = [job for job in dag.jobs if job.folder == inside or job.folder in inside.parents]
        jobs = jobs or [job for job in dag.jobs if inside in job.folder.parents]
    else:
        jobs = [job for job in dag.jobs if target in (job.stage, job.point, job.source, job.label)]
    if not jobs:
        stages = ", ".join(dict.fromkeys(job.stage for job in dag.jobs))
        points = ", ".join(list(dict.fromkeys(job.point for job in dag.jobs if job.point))[:3])
        raise PipelineError(
            f"'{target}': nothing of {dag.words} has this name; give a stage ({stages}), a point "
            f"({points} ...), a source, or the path of an artifact"
        )
    return dag, jobs
