"""A study as tables of text and as a page: what its scales say side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.analysis import html
from pipeline.analysis.metrics import Key, words
from pipeline.analysis.studies import Side
from pipeline.analysis.tables import plus_minus
from pipeline.dag.study import StudyDag

LEVEL = 0.05  # of all differences, the chance of one false finding


def readable(differences: pd.DataFrame) -> pd.DataFrame:
    """`studies.differences` as text: compared, model, number, before, after, difference, interval, p, of, noise."""
    lines = []
    for row in differences.to_dict("records"):
        n = f", {row['n']} items" if not pd.isna(row["n"]) else ""
        variant = "" if row["variant"] == "base" else f", {row['variant']}"
        interval = "" if pd.isna(row["low"]) else f"{row['low']:+.3g} to {row['high']:+.3g}"
        lines.append(
            {
                "model": f"{row['series']}, E {row['experts']}{variant}",
                "at": row["label"],
                "number": words(row["metric"]) if row["stage"] == "pretrain" else Key.of(row).heading,
                "from": plus_minus(row["before"], float("nan")),
                "to": plus_minus(row["after"], float("nan")),
                "difference": f"{row['difference']:+.3g}",
                "95 % interval": interval,
                "p, corrected": "" if pd.isna(row["corrected"]) else f"{row['corrected']:.2g}",
                "of": f"{row['seeds']} seed{'s' * (row['seeds'] > 1)}{n}",
                "noise": row["noise"],
            }
        )
    columns = ["model", "at", "number", "from", "to", "difference", "95 % interval", "p, corrected", "of", "noise"]
    return pd.DataFrame(lines, columns=columns)


def note(differences: pd.DataFrame, first: str) -> str:
    """How the differences are to be read."""
    tested = int(differences["corrected"].notna().sum()) if len(differences) else 0
    return (
        f"Each is that scale less {first}, for one model. Where both answered the same items, these are paired; with "
        f"several seeds the interval is Student's t over them, else it knows the items only. Intervals are 95 % and "
        f"not corrected; p values are corrected for all {tested} tests by Holm."
    )


def answer(differences: pd.DataFrame, said: dict[str, Any]) -> list[str]:
    """Two sentences: which claims hold, and how many of the differences are beyond noise."""
    sentences = []
    if said["claims"]:
        sentences.append("; ".join(f"{one['claim']}: {one['verdict']}" for one in said["claims"]) + ".")
    tested = differences[differences["corrected"].notna()] if len(differences) else differences
    if len(tested):
        beyond = tested[tested["corrected"] <= LEVEL]
        sentences.append(f"Of {len(tested)} differences between scales {len(beyond)} are beyond noise, corrected.")
    else:
        sentences.append("No difference between the scales has an error bar: nothing can be told from noise.")
    return sentences


def render(
    study: StudyDag, compared: Sequence[Side], differences: pd.DataFrame, said: dict[str, Any], figures: Path
) -> str:
    """The page's text.

    Args:
        said: the verdicts, as `verdicts.as_json` gives them.
        figures: the folder that they are drawn in.
    """
    text = readable(differences)
    scales = [
        {"name": side.scale, "label": side.label, "models": len(study.models[side.scale])}
        | {"title": study.dags[side.scale].scale.title}
        for side in compared
    ]
    return html.fill(
        "study.html.j2",
        title=study.study.title,
        name=study.name,
        source=study.study.source,
        answer=answer(differences, said),
        scales=scales,
        claims=html.claims_table(said),
        counted=html.counted(said),
        figures=html.drawn_figures(figures),
        note=note(differences, compared[0].label),
        differences={"headings": list(text), "lines": text.to_numpy().tolist()},
    )
