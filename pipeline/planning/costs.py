"""What a job takes: FLOPs and disk. Arithmetic on the grid and the registry; nothing is run.

Only pre-training is exact: its tokens are the recipe's, and its FLOPs per token Megatron's count
(`Point.flops_per_token`). The rest is estimated: forward passes at 2 FLOPs per parameter and token, with the tokens
assumed below.
"""

import math
from collections.abc import Callable
from typing import Any

from pipeline.config.evaluations import EvalTask
from pipeline.config.recipes import Grpo
from pipeline.config.scales import Scale
from pipeline.dag.dag import Dag, Job
from pipeline.dag.point import Point
from pipeline.dag.stages import EVALUATIONS, STAGES, those
from pipeline.planning.gpu_memory import BYTES

# Items of the published test sets, as lm-evaluation-harness reads them.
ITEMS = {
    "triviaqa": 17_944,
    "hellaswag": 10_042,
    "gsm8k": 1_319,
    "gsm_plus": 10_552,
    "mbpp": 500,
    "mbpp_plus": 378,
    "humaneval": 164,
    "humaneval_plus": 164,
}
OTHER_ITEMS = 1_000  # of a task that is not among them
# Assumptions: tokens of a question with or without its answer, and of what a model writes before it stops.
QUESTION_TOKENS, ANSWER_TOKENS = 150, 256
CHOICES = {"hellaswag": 4}  # requests per item
TEXT_BYTES = 4  # an assumption: bytes of a source's text for each of its tokens


def pretrain_flops(point: Point) -> float:
    """Forward and backward over the training tokens, and forward over those of the validations."""
    recipe, batch = point.pretrain, point.pretrain.global_batch * point.model.sequence_length
    validations = math.ceil(recipe.steps / recipe.eval_interval)
    return (point.tokens + validations * recipe.eval_batches * batch / 3) * point.flops_per_token


def forward_flops(point: Point, tokens: float) -> float:
    """2 x active parameters per token; attention scores are left out."""
    return 2 * point.active_params * tokens


def grpo_flops(point: Point, recipe: Grpo) -> float:
    """Sampling, reference and old policy (forward), and update (forward and backward): 2 + 2 + 2 + 6 per parameter.

    Every prompt and answer is taken at its greatest length: an upper bound on tokens.
    """
    tokens = recipe.steps * recipe.prompts * recipe.rollouts * (recipe.max_prompt + recipe.max_response)
    return 6 * forward_flops(point, tokens)


def _grpo(scale: Scale, point: Point) -> float:
    assert scale.grpo is not None
    return grpo_flops(point, scale.grpo)


TRAINING: dict[str, Callable[[Scale, Point], float]] = {
    "pretrain": lambda scale, point: pretrain_flops(point),
    "grpo": _grpo,
}
if unknown := {name for name in those(computes=True) if name not in EVALUATIONS} - set(TRAINING):
    raise TypeError(f"say what these stages compute: {', '.join(sorted(unknown))}")


def _items(task: EvalTask) -> int:
    return min(ITEMS.get(task.task, OTHER_ITEMS), task.limit or 10**9)


def evaluation_tokens(stage: str, settings: Any) -> float:
    """Tokens of prompts and answers that one checkpoint's evaluation reads and writes."""
    total, answer = 0.0, STAGES[stage].answer
    for task in settings.tasks:
        prompt = (task.shots + 1) * QUESTION_TOKENS
        if answer == "sampled":
            total += _items(task) * (prompt + settings.samples * min(ANSWER_TOKENS, settings.max_tokens))
            continue
        written = ANSWER_TOKENS if answer == "greedy" and task.task not in CHOICES else 0
        requests = CHOICES.get(task.task, 1) if answer == "greedy" else 1
        total += _items(task) * requests * min(prompt + written, settings.max_length)
    return total


def flops(scale: Scale, point: Point, stage: str) -> float:
    """FLOPs of a stage's job for a point; 0 for stages that compute little."""
    if stage in EVALUATIONS:
        return forward_flops(point, evaluation_tokens(stage, getattr(scale, stage)))
    return TRAINING[stage](scale, point) if stage in TRAINING else 0.0


# ---------------------------------------------------------------------------------------------------------- disk


def source_tokens(dag: Dag, source: str) -> int | None:
    """Tokens of a source, if the registry says so."""
    return getattr(dag.datasets[source], "tokens", None)


def unknown_tokens(dag: Dag) -> list[str]:
    """The sources whose size the registry does not say."""
    return [source for source in dag.datasets if source_tokens(dag, source) is None]


def text_bytes(dag: Dag, job: Job) -> float:
    """Bytes of text that corpus or tokenize reads; 0 for other stages, and where the size is unknown."""
    return TEXT_BYTES * (source_tokens(dag, job.source) or 0) if job.source in dag.datasets else 0.0


def disk(dag: Dag, job: Job) -> float:
    """Bytes of a job's artifact; 0 where it is small, or a source's size is unknown."""
    stage = STAGES[job.stage]
    if stage.model_dtype and job.point:
        point = dag.points[job.point]
        return BYTES[stage.model_dtype(dag, point)] * point.total_params
    tokens = source_tokens(dag, job.source) or 0 if job.source in dag.datasets else 0
    if job.stage == "tokenize":
        return (2 if dag.scale.model.vocab_size < 65_500 else 4) * tokens  # as Megatron's indexed data set
    return TEXT_BYTES * tokens


def state_bytes(dag: Dag, job: Job) -> float:
    """Bytes of a running job's saves: the newest, and the one before it until that is whole.

    A save holds the weights, and in fp32 the weights again and AdamW's two moments.
    """
    if job.stage not in TRAINING or job.point is None:
        return 0.0
    return 2 * (disk(dag, job) + 12 * dag.points[job.point].total_params)
