"""Test the claims of config/claims.yaml on the finished table of a scale, and print the verdicts.

For whoever reads results, or changes a claim and wants to see what becomes of it. Nothing is published, and the results
folder stays as it is; `snakemake` makes the verdicts that the report shows.
"""

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

from pipeline.artifacts import store
from pipeline.commands.common import add_common
from pipeline.dag.dag import Dag
from pipeline.dag.survey import survey

WIDTH = 120


def judged(dag: Dag, results: Path) -> dict[str, Any]:
    """The verdicts of a scale's table as plain data.

    Raises:
        PipelineError: there is no table yet, or it is not whole.
    """
    import pandas as pd  # slow to import

    from pipeline.analysis import verdicts

    folder = results / dag.job("table").folder
    store.check_files(folder, store.read_record(folder))
    findings = verdicts.verdicts(dag.claims, pd.read_parquet(folder / "results.parquet"), dag.name)
    return verdicts.as_json(dag.claims, findings)


def lines(data: dict[str, Any]) -> list[str]:
    """The verdicts for a terminal: each claim with its findings; what was not run at the end."""
    from pipeline.analysis import verdicts

    page, shown, not_run = verdicts.page(data), [], []
    for claim in data["claims"]:
        if claim["verdict"] == verdicts.NOT_RUN:
            not_run.append(f"  {claim['id']}: {claim['findings'][0]['reason']}")
            continue
        shown.append(f"{claim['verdict'].upper():<10} {claim['id']}: {claim['claim']} [{claim['source']}]")
        for row in page[page["id"] == claim["id"]].to_dict("records"):
            value = f"{row['estimate']} ({row['interval']})" if row["interval"] else row["estimate"]
            p = f"corrected p {row['p']}" if row["p"] else ""
            parts = [row["number"], f"{row['statistic']} {value}".strip(), p, row["n"], row["noise"], row["reason"]]
            shown.append(f"           {row['finding']}: " + "; ".join(filter(None, parts)))
    shown += [f"NOT RUN, {len(not_run)} claims:", *not_run] if not_run else []
    return [*shown, "", *textwrap.wrap(verdicts.note(data), WIDTH)]


def run(args: argparse.Namespace) -> int:
    """Print the verdicts."""
    dag = Dag.load(args.scale, args.config)
    data = judged(dag, args.results)
    if args.json:
        print(json.dumps(data, indent=1, ensure_ascii=False))
        return 0
    job = dag.job("table")
    if job in survey(dag, args.results).stale:
        folder = args.results / job.folder
        print(f"{folder}: is of other settings, inputs or code than now; tested as it is (`python -m pipeline why`)")
    print("\n".join(lines(data)))
    return 0


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("claims", help="test the claims on the finished table", description=__doc__)
    add_common(parser)
    parser.add_argument("--json", action="store_true", help="all of it, with the rows that were used, as JSON")
    parser.set_defaults(func=run)
