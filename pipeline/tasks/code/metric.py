"""`code_tests` as a metric of the library `evaluate`, with the interface of the hub's `code_eval`."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import datasets
import evaluate

from pipeline.tasks.code.tests import run_tests
from pipeline.tasks.results import pass_at_k


class CodeEval(evaluate.Metric):
    """pass@k of code by its tests."""

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Sequence(datasets.Value("string")), "references": datasets.Value("string")}
        return evaluate.MetricInfo(
            description="pass@k of code by its tests", citation="", features=datasets.Features(features)
        )

    def _compute(
        self, predictions: list[list[str]], references: list[str], k: Sequence[int] = (1, 10, 100), **_: Any
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """pass@k over problems, for each k that all have samples for; and each sample's result by problem."""
        outcomes = run_tests(predictions, references)
        counts = [(len(group), sum(outcome.ok for outcome in group)) for group in outcomes]
        rates = {f"pass@{n}": fmean(pass_at_k(*count, n) for count in counts) for n in k if n <= min(counts)[0]}
        details = {
            task: [
                (
                    i,
                    {
                        "task_id": task,
                        "completion_id": i,
                        "passed": outcome.ok,
                        "result": "passed" if outcome.ok else outcome.reason,
                    },
                )
                for i, outcome in enumerate(group)
            ]
            for task, group in enumerate(outcomes)
        }
        return rates, details
