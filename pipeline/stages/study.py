"""Compare scales model by model, as an entry of config/studies.yaml says (paper: Figures 10, 15, 16, 24, 25, Table 4).

    python -m pipeline.stages.study --scale studies/problems

Reads the records and items of the models that the scales share. Writes `results.{parquet,csv}` (the scales' tidy tables
below one another, with the study's `label` of each scale), `differences.{parquet,csv,md}` (each scale less the first,
for each model and number), `claims.json` and `claims.md` (verdicts on the claims about this study), the figures, and
`report.html`.
"""

import json
from typing import Any

import pandas as pd

from pipeline.analysis import studies, study_charts, study_page, verdicts
from pipeline.analysis.drawing import save_all
from pipeline.analysis.tables import as_text, markdown
from pipeline.runner import Context, main


def run(ctx: Context) -> dict[str, Any]:
    """Write all of it; the metrics count it."""
    study = ctx.study
    compared = studies.sides(study, ctx.records, ctx.inputs)
    results = pd.concat([side.results for side in compared], ignore_index=True)
    results.to_parquet(ctx.out / "results.parquet", index=False)
    as_text(results).to_csv(ctx.out / "results.csv", index=False, lineterminator="\n")
    differences = studies.differences(compared)
    differences.to_parquet(ctx.out / "differences.parquet", index=False)
    as_text(differences).to_csv(ctx.out / "differences.csv", index=False, lineterminator="\n")
    said = verdicts.as_json(study.claims, studies.findings(study.claims, compared))
    (ctx.out / "claims.json").write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n")
    (ctx.out / "claims.md").write_text(f"{verdicts.note(said)}\n\n{markdown(verdicts.page(said))}")
    readable = study_page.readable(differences)
    (ctx.out / "differences.md").write_text(
        f"{study_page.note(differences, compared[0].label)}\n\n{markdown(readable)}"
    )
    names = save_all(study_charts.charts(compared), ctx.out)
    (ctx.out / "report.html").write_text(study_page.render(study, compared, differences, said, ctx.out))
    ctx.say(f"{len(differences)} differences of {len(compared)} scales; drew {', '.join(names) or 'nothing'}")
    return {"rows": len(results), "differences": len(differences), "figures": names}


if __name__ == "__main__":
    main("study", run, __doc__)
