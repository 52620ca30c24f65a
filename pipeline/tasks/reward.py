"""The rule reward of post-training (docs/PAPER.md, post-training): 1 for the right final answer, else 0.

`answer` reads the final answer off the text as the task says. `code` is the authors' reward: a program in the text is
run (in the sandbox) and its result is the answer, and math-verify looks for the gold answer in it, or in the text
if there is no program.

The trainer calls `compute_scores` for a batch of rollouts (verl's `reward.custom_reward_function`).
"""

from collections.abc import Sequence
from typing import Literal

from pipeline.tasks import TASKS
from pipeline.tasks.code.answers import run_code, verify_many

Kind = Literal["answer", "code"]


def _by_answer(task: str, text: str, gold: str) -> bool:
    answer = TASKS[task].extract(text)
    return answer is not None and TASKS[task].correct(answer, gold)


def compute_scores(rollouts: Sequence[tuple[str, str, str]], kind: Kind) -> list[float]:
    """The reward of each rollout.

    Args:
        rollouts: (name of the task, a key of `TASKS`; the model's text without special tokens; the gold answer).
        kind: `grpo.reward`.
    """
    if kind == "answer":
        return [float(_by_answer(*rollout)) for rollout in rollouts]
    answers = run_code([text for _, text, _ in rollouts])
    golds = [gold for _, _, gold in rollouts]
    return [float(right) for right in verify_many(list(zip(answers, golds, strict=True)))]
