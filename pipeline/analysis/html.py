"""The report as one self-contained HTML page, from the artifacts of the analysis alone (and the grid).

The figures are drawn in the page by Vega-Lite from the specifications that the figures stage wrote, so that they answer
to the pointer and follow a dark or a light screen. The first has its SVG too, for where scripts do not run; those of
the others would make most of the page's size, and lie in the figures artifact.
"""

import base64
import gzip
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import vl_convert
from markupsafe import Markup

from pipeline.analysis import claims, setup_tables, tables, verdicts
from pipeline.analysis.answer import answer
from pipeline.analysis.catalogue import absent
from pipeline.analysis.metrics import Key, words
from pipeline.analysis.timeline import timeline
from pipeline.dag.point import Point, short
from pipeline.planning.words import duration

FORMULAS = [  # as pipeline/dag/point.py computes them, after those that the architectures state
    ("density, sparsity", "k / E, 1 - k / E"),
    ("training tokens", "steps · sequences per step · sequence length"),
    ("tokens per parameter", "training tokens / total parameters"),
    ("training FLOPs", "training tokens · FLOPs per token"),
]


FINDING = "finding"  # the figure of the first screen


def render(
    title: str,
    scale: str,
    points: Iterable[Point],
    table: Path,
    figures: Path,
    judged: Path,
    corpora: pd.DataFrame | None = None,
) -> str:
    """The page's text. Nothing in it points outside the page: figures are embedded, records are named by path.

    Args:
        table: folder of the table artifact.
        figures: folder of the figures artifact.
        judged: folder of the claims artifact.
        corpora: what the models read (`setup_tables.corpora`).
    """
    results = pd.read_parquet(table / "results.parquet")
    records = json.loads((table / "records.json").read_text())
    topics = claims.topics(results)
    drawn = drawn_figures(figures)
    said = json.loads((judged / "claims.json").read_text())
    points, times = list(points), timeline(records)
    stated = dict.fromkeys(formula for point in points for formula in point.architecture.FORMULAS)
    return fill(
        "report.html.j2",
        title=title,
        name=scale,
        answer=answer(results),
        finding=next((figure for figure in drawn if figure["name"] == FINDING), None),
        facts=_facts(results, records),
        claims=claims_table(said),
        counted=counted(said),
        cautions=claims.cautions(results, topics) + _kept(records),
        topics=topics,
        figures=[figure for figure in drawn if figure["name"] != FINDING],
        absent=absent(results, [figure["name"] for figure in drawn]),
        corpora=None if corpora is None else corpora.to_dict("records"),
        wide=_wide(results),
        formulas=[(formula.name, formula.line) for formula in stated] + FORMULAS,
        grid=setup_tables.models(points).to_dict("records"),
        stages=_stages(records),
        timeline=times | {"spec": packed(json.dumps(times["spec"]).encode())},
        versions=_versions(records),
        machines=_distinct(f"{r['hardware']} · {r['execution']}" for r in map(_readable, records)),
        commits=_distinct(r["commit"] or "not under version control" for r in records),
        records=[_readable(r) for r in records],
        adopted=[{"point": r["point"]} | r["adopted"] for r in records if "adopted" in r],
    )


def fill(template: str, **values: Any) -> str:
    """A page of this folder's templates, with the scripts that all pages have."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (Path(__file__).parent / "page.js").read_text()
    return environment.get_template(template).render(library=Markup(_library()), script=Markup(script), **values)


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
        ("CPU time", duration(sum(r["cpu_s"] for r in records))),
        ("started (UTC)", f"{started[0][:16]} to {started[-1][:16]}".replace("T", " ")),
    ]


@cache
def _library() -> str:
    """vega-embed with Vega and Vega-Lite, as a script for a page."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")


def _kept(records: list[dict[str, Any]]) -> list[str]:
    """A sentence for each artifact that was kept although its identity had changed (`python -m pipeline accept`)."""
    return [
        f"{record['path']} was not made with the settings shown: it was kept on purpose ({note['reason']}; "
        f"{note['when'][:10]}). What differs: {'; '.join(note['changes'])}."
        for record in records
        for note in record["accepted"]
    ]


def claims_table(said: dict[str, Any]) -> dict[str, Any]:
    """A line for each finding on a claim, as `verdicts.page` words it."""
    frame = verdicts.page(said)
    columns = {"claim": "claim", "finding": "verdict", "statistic": "test", "estimate": "estimate"}
    columns |= {"interval": "95 % interval", "p": "p, corrected", "n": "of", "number": "number", "source": "source"}
    order = list(verdicts.VERDICTS)
    frame = frame.sort_values("verdict", key=lambda given: given.map(order.index), kind="stable")
    frame["finding"] = [verdict or whole for verdict, whole in zip(frame["finding"], frame["verdict"], strict=True)]
    frame["statistic"] = [text or reason for text, reason in zip(frame["statistic"], frame["reason"], strict=True)]
    frame["number"] = [", less ".join(map(_in_words, number.split(", less "))) for number in frame["number"]]
    return {
        "headings": list(columns.values()),
        "lines": frame[list(columns)].to_numpy().tolist(),
        "note": verdicts.note(said),
    }


def _in_words(number: str) -> str:
    """`benchmark sums exact_match,strict-match` for people."""
    asked, _, metric = number.rpartition(" ")
    return f"{asked}, {words(metric)}" if asked else metric


def counted(said: dict[str, Any]) -> str:
    """`4 hold, 1 fails, 2 undecided at this noise, 20 not run`."""
    given = [claim["verdict"] for claim in said["claims"]]
    words = {"holds": "hold", "fails": "fail", "undecided": "are undecided at this noise", "not run": "were not run"}
    return ", ".join(f"{given.count(verdict)} {word}" for verdict, word in words.items())


def encoded(data: bytes) -> str:
    """Bytes as text, in base64."""
    return base64.b64encode(data).decode()


def packed(specification: bytes) -> str:
    """As the page holds it. gzip makes a twentieth of it: the page of 65 models has 3 MB of specifications."""
    return encoded(gzip.compress(specification, mtime=0))


def drawn_figures(folder: Path) -> list[dict[str, Any]]:
    """What a folder's `figures.json` describes, with each figure's specification, and the SVG of the first."""
    described = json.loads((folder / "figures.json").read_text())
    for figure in described:
        figure["spec"] = packed((folder / f"{figure['name']}.json").read_bytes())
        if figure["name"] == FINDING:
            figure["data"] = f"data:image/svg+xml;base64,{encoded((folder / f'{FINDING}.svg').read_bytes())}"
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
    notes = {heading: "n = " + "/".join(map(str, sorted(items))) for heading, items in counts.items()}
    return {"headings": [(heading, notes.get(heading, "")) for heading in frame.columns], "lines": lines}


def _stages(records: list[dict[str, Any]]) -> list[dict[str, str]]:
    frame = pd.DataFrame(records)
    totals = []
    for stage, group in frame.groupby("stage", sort=False):
        totals.append(
            {"stage": str(stage), "records": str(len(group)), "wall": duration(group["wall_s"].sum())}
            | {"CPU": duration(group["cpu_s"].sum()), "largest memory": f"{group['peak_rss_mb'].max():,.0f} MiB"}
        )
    return totals


def _versions(records: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Package and version; every version, if records differ."""
    packages = sorted({name for r in records for name in r["versions"]})
    return [(name, ", ".join(_distinct(r["versions"].get(name) for r in records))) for name in packages]


def _distinct(values: Iterable[str | None]) -> list[str]:
    return sorted({value for value in values if value})


def _readable(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its mappings as text."""
    text = {key: ", ".join(f"{k} {v}" for k, v in record[key].items()) for key in ("hardware", "execution")}
    return record | text | {"duration": duration(record["wall_s"]), "cpu": duration(record["cpu_s"])}
