"""Draw the figures of a scale anew from its finished table: `python -m pipeline figures --preview`.

For whoever changes a chart (docs/howto/new-figure.md) and wants to see it. Nothing is published, and the results folder
stays as it is: pictures are laid in preview/<scale>, or where --out says. A table that the configuration or the code
has left behind is drawn all the same, and the command says so. `snakemake` makes the figures that count.
"""

import argparse
from pathlib import Path

from pipeline.artifacts import store
from pipeline.artifacts.record import RECORD
from pipeline.commands.common import add_common
from pipeline.dag.dag import Dag
from pipeline.dag.stages import STAGES
from pipeline.dag.survey import survey
from pipeline.errors import PipelineError


def reservation(dag: Dag, results: Path) -> str | None:
    """Why figures drawn from a scale's table are not those that the configuration asks for; None if they are.

    Raises:
        PipelineError: there is no table yet, or it is not whole.
    """
    job = dag.job("table")
    folder = results / job.folder
    record = store.read_record(folder)
    store.check_files(folder, record)
    if record.stage_version != (version := STAGES["table"].version):
        why = f"it was made by older code (version {record.stage_version} of the stage, now {version})"
    elif job in survey(dag, results).stale:
        why = "it is of other settings or inputs than the configuration asks for now"
    else:
        return None
    return f"{folder}: {why}; taken as it is (`python -m pipeline why {folder}`)"


def preview(dag: Dag, results: Path, out: Path) -> list[str]:
    """Draw every figure that the scale's table has data for into `out`; returns their names.

    Raises:
        PipelineError: `out` is in the results folder, or the table lacks a column since older code made it.
    """
    from pipeline.analysis.drawing import draw_all  # here, because pandas is slow to import

    if out.resolve().is_relative_to(results.resolve()):
        raise PipelineError(f"--out {out}: lies in the results folder, which holds published artifacts only")
    job = dag.job("table")
    out.mkdir(parents=True, exist_ok=True)
    try:
        return draw_all(results / job.folder, out)
    except KeyError as error:
        if store.read_record(results / job.folder).stage_version == STAGES["table"].version:
            raise  # a mistake in a chart
        path = results / job.folder / RECORD
        raise PipelineError(
            f"{results / job.folder}: older code made it, without the column {error}; "
            f"`snakemake --cores 2 {path}` makes it anew"
        ) from None


def run(args: argparse.Namespace) -> int:
    """Draw the figures and say where they lie."""
    dag = Dag.load(args.scale, args.config)
    if note := reservation(dag, args.results):
        print(note)
    out = args.out or Path("preview", dag.name)
    names = preview(dag, args.results, out)
    print("\n".join(f"{out / name}.png" for name in names) or "no figure: the table has no metric to draw")
    print(
        "not published: `snakemake` makes the figures of the results folder, by the version in pipeline/dag/stages.py"
    )
    return 0


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("figures", help="draw the figures anew, without publishing", description=__doc__)
    add_common(parser)
    parser.add_argument("--preview", action="store_true", required=True, help="draw and do not publish")
    parser.add_argument("--out", type=Path, help="the folder to draw into (default: preview/<scale>)")
    parser.set_defaults(func=run)
