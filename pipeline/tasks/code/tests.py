"""Scores code by its tests, in the sandbox: what lm-eval's humaneval and mbpp tasks call `code_eval`.

Those tasks call `evaluate.load("code_eval")`, which takes a folder `code_eval` of the working directory before it asks
the Hugging Face hub, whose module runs the code inside the evaluating process. `lay_code_eval` writes that folder.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.sandbox.run import Limits, Outcome, run_many

# The hub's module allows 3 seconds on the clock. Of the reference solutions of HumanEval+, the slowest needs 3.4 CPU
# seconds for its inputs on a busy machine (HumanEval/139), of those of MBPP 2.1.
LIMITS = Limits(timeout_s=10, memory_mb=4096)
MODULE = '"""Tests of code, run in the sandbox of this project."""\n\nfrom pipeline.tasks.code.metric import CodeEval\n'


def lay_code_eval(folder: Path) -> None:
    """Write `code_eval` into the folder in which lm-eval will run."""
    (folder / "code_eval").mkdir(parents=True, exist_ok=True)
    (folder / "code_eval" / "code_eval.py").write_text(MODULE)


def run_tests(predictions: Sequence[Sequence[str]], references: Sequence[str]) -> list[list[Outcome]]:
    """How each candidate of each problem ends when the problem's tests follow it."""
    programs = [f"{code}\n{test}" for codes, test in zip(predictions, references, strict=True) for code in codes]
    outcomes = iter(run_many(programs, limits=LIMITS))
    return [[next(outcomes) for _ in codes] for codes in predictions]
