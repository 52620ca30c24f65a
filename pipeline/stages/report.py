"""Write the report of a scale: one HTML page that holds its figures, tables and what they say (paper: sections 3, 4).

    python -m pipeline.stages.report --scale mini

Reads the table, claims and figures artifacts, and the records of tokenisation where the registry does not say how many
tokens a source has. Writes `report.html`, which needs nothing else and opens without a network, and as CSV and Markdown
its tables of the setting: `corpora` (the paper's Tables 1 and 2) and `models`.
"""

from typing import Any

from pipeline.analysis import html, setup_tables
from pipeline.planning.words import size
from pipeline.runner import Context, main


def run(ctx: Context) -> dict[str, Any]:
    """Write the page; the metrics are its size."""
    points = ctx.dag.points.values()
    counted = {
        str(record.source): record.metrics["train_tokens"]
        for record in ctx.records.values()
        if record.stage == "tokenize" and "train_tokens" in record.metrics
    }
    corpora = setup_tables.corpora(ctx.scale.data, ctx.dag.datasets, points, counted)
    setup_tables.write(corpora, "corpora", ctx.out)
    setup_tables.write(setup_tables.models(points), "models", ctx.out)
    page = html.render(
        ctx.scale.title,
        ctx.dag.name,
        points,
        ctx.inputs["table"],
        ctx.inputs["figures"],
        ctx.inputs["claims"],
        corpora,
    )
    path = ctx.out / "report.html"
    path.write_text(page)
    ctx.say(f"report.html: {size(path.stat().st_size)}")
    return {"bytes": path.stat().st_size}


if __name__ == "__main__":
    main("report", run, __doc__)
