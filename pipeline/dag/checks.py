"""What of a scale's configuration cannot go together, found when it is loaded: names, tasks, and pairs of numbers.

The models of the configuration see one value, or one section, at a time. Here the scale is whole: its points are
expanded, its sources and tasks known. Everything that is wrong is said at once, a line each, as `file:line: key.path:
what, and the way out`. What needs text and a tokenizer is the stage `preflight`'s.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.config.base import MOST, alike, near
from pipeline.config.marks import Where
from pipeline.dag.point import Point
from pipeline.dag.stages import STAGES
from pipeline.data.registry import Sources
from pipeline.errors import PipelineError
from pipeline.tasks import HUB, OWN, TASKS, GeneratedTask, HubTask
from pipeline.tasks.stock import stock_names

if TYPE_CHECKING:
    from pipeline.dag.dag import Dag

LEAST_TEMPERATURE = 0.01  # vLLM takes what is lower for this, and says so in its log only
MOST_SAMPLES = 16_384  # of one request, in vLLM
HEAD_STEP, MOST_HEAD = 16, 256  # head sizes of vLLM's attention, on CPUs and on GPUs
MOST_TAG = 64  # characters: a point's name is a folder's
MOST_COUNTED = 2**62
ROLES = {"tokenizer", "checkpoint", "data", "all", "fetch", "plan"}  # what else a name may be taken for

Problem = tuple[str, str]  # key path below the scale (or the file), and what is wrong


def check(dag: "Dag", sources: Sources, where: Where) -> None:
    """Refuse a scale that cannot be run to its end.

    Args:
        where: the scale's place.

    Raises:
        PipelineError: one line for each problem.
    """
    lines = [f"{sources.where.key(key)}: {what}" for key, what in _registry(sources)]
    for problems in (_points(dag), _evaluate(dag), _recipe(dag), _lengths(dag), _tasks(dag, sources)):
        lines += [f"{where.key(key)}: {what}" for key, what in problems]
    if lines:
        raise PipelineError("\n".join(dict.fromkeys(lines)))


# ------------------------------------------------------------------------------------------------------- names


def _registry(sources: Sources) -> Iterator[Problem]:
    """Names that would share a folder, or be two things where one is asked for by name."""
    for section in ("datasets", "benchmarks"):
        for name in getattr(sources, section):
            if name.lower() in STAGES.keys() | ROLES:
                yield f"{section}.{name}", "is the name of a stage or of what a stage reads; give it another"
    for name in sorted(set(sources.datasets) & set(sources.benchmarks)):
        yield (
            f"datasets.{name}",
            f"benchmarks.{name} has the same name, and both lie below data/{name}; rename this one",
        )
    for what, names in (
        ("datasets", [*sources.datasets, *(name for name in sources.benchmarks if name not in sources.datasets)]),
        ("tokenizers", [*sources.tokenizers]),
    ):
        if pair := alike(names):
            yield what, f"'{pair[0]}' and '{pair[1]}' differ by upper and lower case only; rename one"


def _points(dag: "Dag") -> Iterator[Problem]:
    if pair := alike(dag.points):
        yield "points", f"'{pair[0]}' and '{pair[1]}' differ by upper and lower case only; change a `tag`"
    for i, block in enumerate(dag.scale.points):
        if block.tag and len(block.tag) > MOST_TAG:
            yield f"points.{i}.tag", f"has {len(block.tag)} characters; a folder is named by it, so at most {MOST_TAG}"
        if (block.adopt or dag.scale.adopt) and block.pretrain.get("keep"):
            yield f"points.{i}.pretrain.keep", "these points adopt a finished checkpoint and have no steps to keep"
    if shared := sorted(set(dag.points) & (set(dag.datasets) | set(dag.benchmarks))):
        yield "points", f"a source is named '{shared[0]}' as a point is; rename the source"


# ------------------------------------------------------------------------------------------------------ recipe


def _recipe(dag: "Dag") -> Iterator[Problem]:
    """Pairs of numbers of the models and of training."""
    scale = dag.scale
    if not math.isfinite(sum(scale.data.sources.values())):
        yield "data.sources", "the shares add up to infinity; give smaller ones"
    if scale.pretrain.keep and all(point.adopt for point in dag.points.values()):
        yield "pretrain.keep", "all points adopt finished checkpoints and have no steps to keep; say `keep: []`"
    for point in dag.points.values():
        if problems := list(_shape(point)):
            yield from problems
            continue
        if point.pretrain.seed > MOST:
            yield "points", f"{point.name}: pretrain.seed and seed come to {point.pretrain.seed}, above {MOST}"
        for what, count in (("training tokens", point.tokens), ("parameters", point.total_params)):
            if count >= MOST_COUNTED:
                yield "points", f"{point.name}: {count:.3g} {what} are more than engines count"
    if (grpo := scale.grpo) is not None:
        if grpo.clip >= 1:
            yield "grpo.clip", f"{grpo.clip:g} lets a ratio of probabilities fall to 0 or below; give less than 1"
        if grpo.temperature < LEAST_TEMPERATURE:
            yield "grpo.temperature", f"{grpo.temperature:g}: vLLM would take {LEAST_TEMPERATURE} without a word"
    if (decode := scale.decode) is not None:
        if decode.temperature < LEAST_TEMPERATURE:
            yield "decode.temperature", f"{decode.temperature:g}: vLLM would take {LEAST_TEMPERATURE} without a word"
        if decode.samples > MOST_SAMPLES:
            yield "decode.samples", f"{decode.samples} is above vLLM's most, {MOST_SAMPLES}"


def _shape(point: Point) -> Iterator[Problem]:
    head, exact = point.model.head_size, point.model.ffn_ratio * point.hidden
    if head % HEAD_STEP or head > MOST_HEAD:
        yield "model.head_size", f"{head}: vLLM serves multiples of {HEAD_STEP} up to {MOST_HEAD}"
    if point.ffn < 1 or abs(exact - point.ffn) > 1e-3:
        yield (
            "model.ffn_ratio",
            f"{point.model.ffn_ratio:g} times hidden {point.hidden} is {exact:g}, not a whole width of an expert",
        )
    elif point.ffn > MOST:
        yield "model.ffn_ratio", f"{point.model.ffn_ratio:g} times hidden {point.hidden} is {exact:g}, above {MOST}"


def _evaluate(dag: "Dag") -> Iterator[Problem]:
    """Evaluations that points name and that the scale does not have."""
    for i, block in enumerate(dag.scale.points):
        for name in block.evaluate or ():
            if name not in dag.evaluations:
                yield f"points.{i}.evaluate", f"the scale has no evaluation '{name}'; {near(name, dag.evaluations)}"


def _lengths(dag: "Dag") -> Iterator[Problem]:
    """Lengths that the models' context cannot hold: found by vLLM otherwise, after training."""
    scale, context = dag.scale, dag.scale.model.sequence_length
    end = f"above model.sequence_length {context}, the models' context; lower it"
    for stage in dag.evaluations:
        length = getattr(getattr(scale, stage), "max_length", 0)  # decode has max_tokens, of the answer alone
        if length > context:
            yield f"{stage}.max_length", f"{length} is {end}"
    if scale.decode is not None and scale.decode.max_tokens >= context:
        yield (
            "decode.max_tokens",
            f"{scale.decode.max_tokens} leaves no room for a prompt in model.sequence_length {context}; lower it",
        )
    if scale.grpo is not None and dag.post_trains:
        both = scale.grpo.max_prompt + scale.grpo.max_response
        if both > context:
            yield (
                "grpo.max_prompt",
                f"grpo.max_prompt {scale.grpo.max_prompt} + grpo.max_response {scale.grpo.max_response} = {both} is "
                f"{end} one of them",
            )


# ------------------------------------------------------------------------------------------------------- tasks


def _tasks(dag: "Dag", sources: Sources) -> Iterator[Problem]:
    for stage, key, entry in dag.asked:
        name, task = entry.task, TASKS.get(entry.task)
        serving = [name for name in TASKS if unfit(stage, name) is None]
        if task is None:
            known = set(serving)
            if asks_lm_eval(stage):
                known |= stock_names([name])
            if name not in known:
                also = " nor of lm-eval" if asks_lm_eval(stage) else ""
                yield f"{key}.task", f"'{name}' is not a task of this project{also}; {near(name, sorted(known))}"
            continue
        if why := unfit(stage, name):
            yield f"{key}.task", f"'{name}' {why}; those that serve here: {', '.join(serving)}"
        elif stage == "grpo" and not dag.post_trains:
            continue  # a recipe that a scale inherits and no point of it takes needs no data
        elif isinstance(task, GeneratedTask) and not any(s.kind == task.source_kind for s in dag.datasets.values()):
            yield (
                f"{key}.task",
                f"'{name}' asks about a source of kind '{task.source_kind}', and data.sources has none; add one or "
                f"ask another task",
            )
        elif isinstance(task, HubTask) and task.data not in sources.benchmarks:
            yield (
                f"{key}.task",
                f"the data of '{name}' is not under `benchmarks` in {sources.where.file}; add an entry '{task.data}'",
            )
        elif stage == "grpo" and getattr(entry, "reward", "answer") == "code" and task.kind != "reasoning":
            yield "grpo.reward", f"code compares mathematics, and the answers of '{name}' are none; say `answer`"
        elif _needs_examples(stage, entry) and isinstance(task, HubTask) and task.train is None:
            yield f"{key}.shots", f"'{name}' has no worked examples; say `shots: 0`"


def asks_lm_eval(stage: str) -> bool:
    """Whether lm-eval puts the stage's questions, and so knows tasks beyond the project's."""
    return "lm-eval" in STAGES[stage].engines


def _needs_examples(stage: str, entry: Any) -> bool:
    """Whether a task's worked examples come from its training split; lm-eval's code tasks bring some of their own."""
    return bool(STAGES[stage].answer) and not asks_lm_eval(stage) and getattr(entry, "shots", 0) > 0


def unfit(stage: str, name: str) -> str | None:
    """Why a task of the project cannot serve a stage, as the end of a sentence; None if it can."""
    task = TASKS[name]
    if asks_lm_eval(stage):
        return "is not among lm-eval's tasks" if name in HUB and HUB[name].stock is None else None
    if name in OWN and OWN[name].choice:
        return "is multiple choice, which only benchmark asks"
    if STAGES[stage].answer != "scored" and not task.answerable:
        return "has no final answer to read off a text"
    return None
