"""Collect every number of a scale into one table (paper: the data behind all figures).

    python -m pipeline.stages.table --scale mini

Reads the records of pre-training, conversion, GRPO and the evaluations. Writes `results.{parquet,csv,md}` (one row per
number, with n, standard error and the fingerprint it came from), `wide.{csv,md}` (one line per model), `curves.parquet`
(training curves) and `records.json` (what made each number).
"""

import json
from typing import Any

from pipeline.analysis import tables
from pipeline.runner import Context, main


def run(ctx: Context) -> dict[str, Any]:
    """Write the tables; the metrics are their sizes."""
    results = tables.tidy(ctx.records, ctx.dag.points)
    results.to_parquet(ctx.out / "results.parquet", index=False)
    wide = tables.wide(results)
    for name, frame in (("results", tables.as_text(results)), ("wide", wide)):
        frame.to_csv(ctx.out / f"{name}.csv", index=False, lineterminator="\n")
        (ctx.out / f"{name}.md").write_text(tables.markdown(frame))
    curves = tables.curves(ctx.records, ctx.inputs)
    curves.to_parquet(ctx.out / "curves.parquet", index=False)
    records = tables.provenance(ctx.records.values())
    (ctx.out / "records.json").write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
    ctx.say(f"{len(results)} numbers of {len(wide)} models from {len(records)} records")
    return {"rows": len(results), "models": len(wide), "records": len(records), "curve_rows": len(curves)}


if __name__ == "__main__":
    main("table", run, __doc__)
