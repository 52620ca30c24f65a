"""What it costs to plan: CPU seconds and peak memory of Snakemake's dry runs and of `python -m pipeline plan`.

    python benchmarks/plan.py --scale smoke math

Each command runs in a process of its own from the repository's root; its CPU time (user and system, with its children)
is that of the fastest of --runs, its memory the largest resident set.

The reference is a DAG of this shape with trivial rules (21 jobs a point and 4, an empty tree), planned by the same
Snakemake 9.27.1: 1.6 s to start, 1.2 to 1.4 ms a job; 1,054 jobs took 2.6 s and 139 MB, 2,104 jobs 3.7 s and 155 MB.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from pipeline.dag.dag import Dag
from pipeline.runtime.quiet import quietly

ROOT = Path(__file__).parents[1]


def cost(command: list[str]) -> tuple[float, float]:
    """CPU seconds and MiB of a command, which has to succeed."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: status {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


@quietly()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", nargs="+", default=["smoke", "math"])
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    snakemake, python = str(Path(sys.executable).with_name("snakemake")), sys.executable
    commands = {"snakemake --version": ([snakemake, "--version"], 0)}
    for scale in args.scale:
        jobs = len(Dag.load(scale, ROOT / "config" / "grid.yaml").jobs)
        commands[f"snakemake -n, {scale}"] = ([snakemake, "-n", "--config", f"scale={scale}"], jobs)
        commands[f"pipeline plan, {scale}"] = ([python, "-m", "pipeline", "plan", "--scale", scale], jobs)
    print(f"{'command':24}{'jobs':>8}{'CPU s':>8}{'MiB':>8}")
    for name, (command, jobs) in commands.items():
        measured = [cost(command) for _ in range(args.runs)]
        seconds, memory = min(s for s, _ in measured), max(m for _, m in measured)
        print(f"{name:24}{jobs or '':>8}{seconds:>8.2f}{memory:>8.0f}", flush=True)


if __name__ == "__main__":
    main()
