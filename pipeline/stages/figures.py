"""Draw the figures of a scale (paper: Figures 1 to 8, as far as the scale measures them).

    python -m pipeline.stages.figures --scale mini

Reads the table artifact only. Writes `<figure>.png`, `<figure>.svg` and `figures.json` (titles, captions, alt texts).
"""

import json
from typing import Any

import pandas as pd

from pipeline.analysis import figures
from pipeline.stage import Context, main


def run(ctx: Context) -> dict[str, Any]:
    """Draw what there is data for; the metrics name it."""
    table = ctx.inputs["table"]
    charts = figures.charts(pd.read_parquet(table / "results.parquet"), pd.read_parquet(table / "curves.parquet"))
    described = [figures.save(chart, ctx.out) for chart in charts]
    (ctx.out / "figures.json").write_text(json.dumps(described, indent=1) + "\n")
    names = [chart.name for chart in charts]
    ctx.say(f"drew {', '.join(names) or 'nothing: no metric to draw'}")
    return {"figures": names}


if __name__ == "__main__":
    main("figures", run, __doc__)
