"""What a program costs in the sandbox, against Python alone and against the hub's `code_eval` way of a process each.

    python benchmarks/sandbox.py [--programs 500] [--workers 2]

All run the same program, an assertion about a function. "python" starts an interpreter a program and confines nothing;
"fork" runs it in a forked child of this process, as the hub's metric does, with no more than a timeout around it.
CPU seconds are those of all processes: on a shared machine trust them, not the clock.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable

from pipeline.runtime.quiet import quietly
from pipeline.sandbox.run import run_many, run_python, workers_here

PROGRAM = "def add(a, b):\n    return a + b\n\nassert add(2, 3) == 5\n"


def by_python() -> None:
    """A new interpreter, unconfined."""
    subprocess.run([sys.executable, "-I", "-S", "-c", PROGRAM], check=True)


def by_fork() -> None:
    """A forked child, unconfined."""
    child = os.fork()
    if child == 0:
        exec(PROGRAM, {})
        os._exit(0)
    os.waitpid(child, 0)


def measure(name: str, programs: int, run: Callable[[], object]) -> None:
    """Print what one of `programs` programs costs."""
    wall, before = time.perf_counter(), os.times()
    run()
    wall, after = time.perf_counter() - wall, os.times()
    cpu = sum(after[:4]) - sum(before[:4])
    print(f"{name:28} {1000 * wall / programs:7.1f} ms {1000 * cpu / programs:7.1f} CPU ms a program", flush=True)


@quietly()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=500)
    parser.add_argument("--workers", type=int, default=workers_here())
    args = parser.parse_args()
    few = max(args.programs // 10, 1)
    measure("fork, unconfined", args.programs, lambda: [by_fork() for _ in range(args.programs)])
    measure("python, unconfined", few, lambda: [by_python() for _ in range(few)])
    measure("run_python", few, lambda: [run_python(PROGRAM) for _ in range(few)])
    for workers in sorted({1, args.workers}):
        measure(
            f"run_many, {workers} at a time", args.programs, lambda n=workers: run_many([PROGRAM] * args.programs, n)
        )


if __name__ == "__main__":
    main()
