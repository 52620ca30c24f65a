"""CPU seconds of a checkpoint's evaluations: a process for each, against one process with one engine.

    python -m benchmarks.evaluation --scale mini --point d32-E2-k2-52K-A51K

The checkpoint has to be there (`snakemake --cores 2 convert`). Both ways take turns, --rounds times, in a copy of the
scale's results without evaluations; times are user and system, with children. To the one process are added those of the
stages that then find themselves made.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.plan import ROOT, cost
from pipeline.dag.dag import BASE, Dag
from pipeline.dag.stages import EVALUATIONS


def seconds(dag: Dag, point: str, stages: list[str], results: Path) -> float:
    """CPU seconds of the first stage's process, which makes the others too."""
    first, *then = stages
    command = [sys.executable, "-m", f"pipeline.stages.{first}", "--scale", dag.name, "--point", point]
    command += ["--variant", BASE, "--device", "cpu", "--results", str(results), *["--then", *then] * bool(then)]
    return cost(command, ROOT)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="mini")
    parser.add_argument("--point", required=True)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    dag = Dag.load(args.scale, ROOT / "config" / "grid.yaml")
    asked = [stage for stage in EVALUATIONS if BASE in dag.variants(args.point, stage)]
    with tempfile.TemporaryDirectory() as name:
        results = Path(name) / "results"
        needed = {upstream for stage in asked for job in dag.of(stage) for upstream in dag.inputs(job).values()}
        for job in needed:
            if (args.results / job.record).exists():
                shutil.copytree(args.results / job.folder, results / job.folder)
        print(f"{'round':>5}  {'each by itself':>36}  {'in one':>16}  {'ratio':>5}")
        for i in range(args.rounds):
            times = {}
            for way in (False, True):
                for folder in (results / ".state", *(results / args.scale / args.point / stage for stage in asked)):
                    shutil.rmtree(folder, ignore_errors=True)
                first = [seconds(dag, args.point, asked, results)] if way else []
                times[way] = first + [seconds(dag, args.point, [stage], results) for stage in asked[way:]]
            apart, together = times[False], times[True]
            sums = [" + ".join(f"{each:.1f}" for each in of) for of in (apart, together)]
            print(f"{i + 1:>5}  {sums[0]:>36}  {sums[1]:>16}  {sum(apart) / sum(together):>5.2f}", flush=True)


if __name__ == "__main__":
    main()
