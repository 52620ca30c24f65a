"""Test the claims of config/claims.yaml on the results of a scale (paper: sections 3 and 4, as far as measured).

    python -m pipeline.stages.claims --scale mini

Reads the table artifact. Writes `claims.json` (every claim with its verdict, statistics and rows), and a line for each
finding as `claims.csv` and `claims.md`. `python -m pipeline claims` prints verdicts without publishing.
"""

import json
from collections import Counter
from typing import Any

import pandas as pd

from pipeline.analysis import verdicts
from pipeline.analysis.tables import markdown
from pipeline.runner import Context, main


def run(ctx: Context) -> dict[str, Any]:
    """Write the verdicts; the metrics count them."""
    claims = ctx.dag.claims
    results = pd.read_parquet(ctx.inputs["table"] / "results.parquet")
    data = verdicts.as_json(claims, verdicts.verdicts(claims, results, ctx.dag.name))
    (ctx.out / "claims.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    page = verdicts.page(data)
    page.to_csv(ctx.out / "claims.csv", index=False, lineterminator="\n")
    (ctx.out / "claims.md").write_text(f"{verdicts.note(data)}\n\n{markdown(page)}")
    count = Counter(claim["verdict"] for claim in data["claims"])
    ctx.say(", ".join(f"{count[verdict]} {verdict}" for verdict in verdicts.VERDICTS))
    return {verdict: count[verdict] for verdict in verdicts.VERDICTS}


if __name__ == "__main__":
    main("claims", run, __doc__)
