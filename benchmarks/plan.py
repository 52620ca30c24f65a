"""What it costs to plan: CPU seconds and peak memory of Snakemake's dry runs and of `python -m pipeline plan`
and `status`.

    python benchmarks/plan.py --scale smoke math
    python benchmarks/plan.py --points 100 1000 5000      # seeds of the miniature, without GRPO

Each command runs in a process of its own, in a copy of the repository without results; its CPU time (user and system,
with its children) is that of the fastest of --runs, its memory the largest resident set.

The reference is a DAG of this shape with trivial rules (21 jobs a point and 4, an empty tree), planned by the same
Snakemake 9.27.1: 1.6 s to start, 1.2 to 1.4 ms a job; 1,054 jobs took 2.6 s and 139 MB, 2,104 jobs 3.7 s and 155 MB.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.dag.dag import Dag
from pipeline.runtime.quiet import quietly

ROOT = Path(__file__).parents[1]


def copy(folder: Path, points: list[int]) -> None:
    """The workflow in a folder, with a scale `many<N>` for each number of points."""
    for name in ("Snakefile", "workflow", "config", "pipeline", "pyproject.toml", "profiles"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name)
        else:
            shutil.copy(ROOT / name, folder / name)
    scales = {
        f"many{count}": {
            "extends": "mini",
            "title": f"{count} points",
            "points": [{"hidden": 32, "experts": [4, 8, 16, 32], "topk": 2, "seed": list(range(count // 4))}],
            "grpo": None,
        }
        for count in points
    }
    (folder / "config/scales/many.yaml").write_text(json.dumps({"scales": scales}))


def cost(command: list[str], folder: Path) -> tuple[float, float]:
    """CPU seconds and MiB of a command, which has to succeed."""
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: status {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


@quietly()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", nargs="+", default=[])
    parser.add_argument("--points", nargs="+", type=int, default=[])
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    snakemake, python = str(Path(sys.executable).with_name("snakemake")), sys.executable
    commands = {"snakemake --version": ([snakemake, "--version"], 0)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy(folder, args.points)
        for scale in [*args.scale, *(f"many{count}" for count in args.points)] or ["smoke", "math"]:
            jobs = len(Dag.load(scale, folder / "config" / "grid.yaml").jobs)
            commands[f"snakemake -n, {scale}"] = (
                [snakemake, "-n", "--quiet", "all", "--config", f"scale={scale}"],
                jobs,
            )
            for verb in ("plan", "status"):
                commands[f"pipeline {verb}, {scale}"] = ([python, "-m", "pipeline", verb, "--scale", scale], jobs)
        print(f"{'command':28}{'jobs':>8}{'CPU s':>8}{'MiB':>8}")
        for what, (command, jobs) in commands.items():
            measured = [cost(command, folder) for _ in range(args.runs)]
            seconds, memory = min(s for s, _ in measured), max(m for _, m in measured)
            print(f"{what:28}{jobs or '':>8}{seconds:>8.2f}{memory:>8.0f}", flush=True)


if __name__ == "__main__":
    main()
