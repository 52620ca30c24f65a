"""The rule reward of post-training (docs/PAPER.md, post-training): 1 for the right final answer, else 0.

verl calls `compute_score` for every rollout (its `reward.custom_reward_function`).
"""

from typing import Any

from pipeline.tasks import TASKS


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None
) -> float:
    """The reward of one answer.

    Args:
        data_source: name of the task, a key of `TASKS`; the column of this name in verl's data file.
        solution_str: the model's text, without special tokens.
        ground_truth: the item's gold answer.
        extra_info: what else verl passes; not used.
    """
    task = TASKS[data_source]
    answer = task.extract(solution_str)
    return float(answer is not None and task.correct(answer, ground_truth))
