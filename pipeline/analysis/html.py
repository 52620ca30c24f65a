"""The report as one self-contained HTML page, from the table and figures artifacts alone (and the grid)."""

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from pipeline.analysis import claims, tables
from pipeline.analysis.metrics import Key
from pipeline.grid import Point, short

FORMULAS = [  # as pipeline/grid.py computes them
    ("dense parameters", "layers · (4·hidden² + 2·hidden) + 2·vocab·hidden + hidden"),
    ("total parameters", "dense + layers · E · (3·hidden·ffn + hidden)"),
    ("active parameters", "dense + layers · k · 3·hidden·ffn (router left out, embeddings counted)"),
    ("density, sparsity", "k / E, 1 - k / E"),
    ("training tokens", "steps · sequences a step · sequence length"),
    ("tokens per parameter", "training tokens / total parameters"),
    (
        "training FLOPs",
        "training tokens · 12·layers·hidden² · "
        "(2 + sequence/hidden + 1.5·k·ffn/hidden + vocab/(2·layers·hidden)), forward and backward",
    ),
]


def render(title: str, scale: str, points: Iterable[Point], table: Path, figures: Path) -> str:
    """The page's text. Nothing in it points outside the page: figures are embedded, records are named by path.

    Args:
        table: folder of the table artifact.
        figures: folder of the figures artifact.
    """
    results = pd.read_parquet(table / "results.parquet")
    records = json.loads((table / "records.json").read_text())
    found = claims.topics(results)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        scale=scale,
        facts=_facts(results, records),
        cautions=claims.cautions(results, found) + _kept(records),
        topics=found,
        figures=_figures(figures),
        wide=_wide(results),
        formulas=FORMULAS,
        grid=[_derived(point) for point in points],
        stages=_stages(records),
        versions=_versions(records),
        machines=_distinct(f"{r['hardware']} · {r['execution']}" for r in map(_readable, records)),
        commits=_distinct(r["commit"] or "not under version control" for r in records),
        records=[_readable(r) for r in records],
        adopted=[{"point": r["point"]} | r["adopted"] for r in records if "adopted" in r],
    )


def _facts(results: pd.DataFrame, records: list[dict[str, Any]]) -> list[tuple[str, str]]:
    models = results.drop_duplicates("point")
    started = sorted(r["started"] for r in records)
    adopted = models["point"].isin([r["point"] for r in records if r["stage"] == "adopt"])
    counts = {"models trained": len(models) - adopted.sum(), "models adopted": adopted.sum()}
    return [
        *((name, str(count)) for name, count in counts.items() if count),
        ("post-trained", str(results[results["variant"] == "grpo"]["point"].nunique())),
        ("total parameters", f"{short(models['total_params'].min())} to {short(models['total_params'].max())}"),
        ("training tokens", f"{models['tokens'].sum():,}"),
        ("training FLOPs", f"{models['flops'].sum():.3g}"),
        ("CPU time", _duration(sum(r["cpu_s"] for r in records))),
        ("begun (UTC)", f"{started[0][:16]} to {started[-1][:16]}".replace("T", " ")),
    ]


def _kept(records: list[dict[str, Any]]) -> list[str]:
    """A sentence for each artifact that was kept although its identity had changed (`python -m pipeline accept`)."""
    return [
        f"{record['path']} was not made with the settings shown: it was kept on purpose ({note['reason']}; "
        f"{note['when'][:10]}). What differs: {'; '.join(note['changes'])}."
        for record in records
        for note in record["accepted"]
    ]


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.1f} s"
        if seconds < 600
        else f"{seconds / 60:.1f} min"
        if seconds < 36000
        else f"{seconds / 3600:.1f} h"
    )


def _figures(folder: Path) -> list[dict[str, str]]:
    described = json.loads((folder / "figures.json").read_text())
    for figure in described:
        encoded = base64.b64encode((folder / f"{figure['name']}.svg").read_bytes()).decode()
        figure["data"] = f"data:image/svg+xml;base64,{encoded}"
    return described


def _wide(results: pd.DataFrame) -> dict[str, Any]:
    """`tables.wide` with each number's n and the fingerprint it came from."""
    columns = tables.main_columns(results)
    origin: dict[tuple[Any, Any, Any], tuple[str, str]] = {}
    counts: dict[Any, set[int]] = {}
    for row in results.astype({"n": "object"}).to_dict("records"):
        heading = columns.get(Key.of(row))
        count = ""
        if not pd.isna(row["n"]):
            count = f", n = {row['n']}"
            counts.setdefault(heading, set()).add(row["n"])
        origin[row["point"], row["variant"], heading] = (row["fingerprint"], f"{row['stage']}{count}")
    frame = tables.wide(results)
    lines = [
        [(text, *origin.get((line[0], line[1], heading), ("", ""))) for heading, text in zip(frame, line, strict=True)]
        for line in frame.to_numpy().tolist()
    ]
    items = {heading: "n = " + "/".join(map(str, sorted(found))) for heading, found in counts.items()}
    return {"headings": [(heading, items.get(heading, "")) for heading in frame.columns], "lines": lines}


def _derived(point: Point) -> dict[str, str]:
    return {
        "point": point.name,
        "series": point.series,
        "hidden": str(point.hidden),
        "E": str(point.experts),
        "k": str(point.topk),
        "seed": str(point.seed),
        "layers": str(point.model.layers),
        "ffn": str(point.ffn),
        "total": f"{point.total_params:,}",
        "active": f"{point.active_params:,}",
        "density": f"{point.density:.4g}",
        "tokens": f"{point.tokens:,}",
        "tokens/param": f"{point.tokens_per_param:.4g}",
        "FLOPs": f"{point.flops_per_token * point.tokens:.3g}",
    }


def _stages(records: list[dict[str, Any]]) -> list[dict[str, str]]:
    frame = pd.DataFrame(records)
    totals = []
    for stage, group in frame.groupby("stage", sort=False):
        totals.append(
            {"stage": str(stage), "records": str(len(group)), "wall": _duration(group["wall_s"].sum())}
            | {"CPU": _duration(group["cpu_s"].sum()), "largest memory": f"{group['peak_rss_mb'].max():,.0f} MiB"}
        )
    return totals


def _versions(records: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Package and version; every version found, if records differ."""
    packages = sorted({name for r in records for name in r["versions"]})
    return [(name, ", ".join(_distinct(r["versions"].get(name) for r in records))) for name in packages]


def _distinct(values: Iterable[str | None]) -> list[str]:
    return sorted({value for value in values if value})


def _readable(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its mappings as text."""
    text = {key: ", ".join(f"{k} {v}" for k, v in record[key].items()) for key in ("hardware", "execution")}
    return record | text | {"duration": _duration(record["wall_s"]), "cpu": _duration(record["cpu_s"])}
