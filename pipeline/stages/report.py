"""Write the report of a scale: one HTML page that holds its figures, tables and what they say (paper: sections 3, 4).

    python -m pipeline.stages.report --scale mini

Reads the table and figures artifacts. Writes `report.html`, which needs nothing else and opens without a network.
"""

from typing import Any

from pipeline.analysis import html
from pipeline.planning.words import size
from pipeline.runner import Context, main


def run(ctx: Context) -> dict[str, Any]:
    """Write the page; the metrics are its size."""
    page = html.render(
        ctx.scale.title,
        ctx.dag.name,
        ctx.dag.points.values(),
        ctx.inputs["table"],
        ctx.inputs["figures"],
        ctx.inputs["claims"],
    )
    path = ctx.out / "report.html"
    path.write_text(page)
    ctx.say(f"report.html: {size(path.stat().st_size)}")
    return {"bytes": path.stat().st_size}


if __name__ == "__main__":
    main("report", run, __doc__)
