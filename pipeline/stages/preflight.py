"""Preflight: whether every prompt, worked example and answer fits, before anything is trained.

    python -m pipeline.stages.preflight --scale mini [--point NAME]

Evaluations and post-training meet a prompt that is too long after weeks of pre-training. This job needs only the
tokenizer and the tasks' items, and pre-training waits for it (`Dag.gates`). There is one per scale, and one for each
point that adopts a checkpoint with a tokenizer of its own.

For each entry of `benchmark`, `decode`, `taskloss` and for `grpo` it counts the tokens of each item as the stage will
put it, and compares them with what holds them:

- decode: prompt and `max_tokens`, with `model.sequence_length`. The stage fails at a longer one.
- taskloss: prompt, answer, and the one token that vLLM always generates, with `max_length`. This fails too.
- benchmark: prompt and what lm-eval lets the model write, or a given answer and one token, with `max_length`. lm-eval
  cuts what is longer from the left, so that is a warning, and an error only where it cuts every prompt. Prompts are
  those of `tasks`, which are lm-eval's (tested), but for MBPP and lm-eval's other tasks: those are not checked.
- grpo: prompt, with `max_prompt`. Longer questions are left out: a warning, and an error where too few are left.

A text of which more than half the tokens are unknown to the tokenizer is an error too.

Out: tasks.json, an entry per task and split: stage, task, split, shots, items, longest (tokens), item (the longest),
limit, too_long (items), unknown (share of tokens), or `unchecked` with the reason. The metrics have them and the
warnings. The message names all that is wrong at once.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tokenizers import Tokenizer

from pipeline.config.evaluations import EvalTask
from pipeline.config.recipes import Grpo
from pipeline.dag.checks import asks_lm_eval
from pipeline.dag.stages import STAGES
from pipeline.data import tokenizer_files
from pipeline.errors import PipelineError
from pipeline.runner import Context, main
from pipeline.tasks import TASKS, stock
from pipeline.tasks.items import read_questions, with_answer
from pipeline.tasks.prompts import first_ids, prepend, training_prompt

CHUNK = 4096  # texts tokenised at a time
MOST_UNKNOWN = 0.5  # share of a task's tokens
OTHERWISE_PUT = ("mbpp", "mbpp_plus")  # lm-eval puts these with examples and tests of its own


@dataclass(frozen=True)
class Asked:
    """The texts that a stage puts for one entry, and what has to hold them.

    Attributes:
        key: of the entry, below the scale.
        texts: one per item.
        room: tokens that have to fit beside each text.
        limit: tokens of text and room together; `limit_key` names it.
        least: items that have to fit; None where all have to.
        add_bos: as the stage's setting.
    """

    stage: str
    key: str
    task: str
    split: str
    texts: list[str]
    room: int
    limit: int
    limit_key: str
    least: int | None
    add_bos: bool | None
    shots: int = 0


def asked(ctx: Context, stage: str, key: str, entry: EvalTask | Grpo) -> Iterator[Asked | str]:
    """How a stage puts the items of one entry; a reason in its place if that is not known here."""
    if isinstance(entry, Grpo):
        yield from asked_by_grpo(ctx, stage, key, entry)
        return
    name = entry.task
    by_lm_eval, writes = asks_lm_eval(stage), STAGES[stage].answer != "scored"
    if name not in TASKS or (by_lm_eval and name in OTHERWISE_PUT):
        yield "its prompts are lm-eval's own"
        return
    settings = getattr(ctx.scale, stage)
    seed = {"seed": seed} if (seed := getattr(entry, "seed", None)) is not None else {}
    questions, task = read_questions(ctx.items_folder(name), entry, **seed), TASKS[name]
    compared = "gold" if (writes and not by_lm_eval) or task.loss_on_gold else "answer"
    if not by_lm_eval:  # lm-eval asks what has no answer that can be read too
        questions, _ = with_answer(questions, compared)
    limit, limit_key = ctx.scale.model.sequence_length, "model.sequence_length"
    if hasattr(settings, "max_length"):
        limit, limit_key = settings.max_length, f"{stage}.max_length"
    written = stock.answer_tokens(name) if by_lm_eval else settings.max_tokens if writes else None
    if written is not None:
        texts, room = [question.prompt for question in questions], written
    else:
        texts = [question.prompt + task.continuation(getattr(question, compared) or "") for question in questions]
        room = 1
    least = 1 if by_lm_eval else None  # it cuts longer prompts from the left
    yield Asked(stage, key, name, "test", texts, room, limit, limit_key, least, settings.add_bos, entry.shots)


def asked_by_grpo(ctx: Context, stage: str, key: str, recipe: Grpo) -> Iterator[Asked]:
    """The prompts of post-training, of which only enough have to fit: longer questions are left out."""
    folder = ctx.items_folder(recipe.task)
    for split, limit, least in (("train", None, recipe.prompts), ("test", recipe.eval_items, 1)):
        rows = pq.read_table(folder / f"{split}.parquet", columns=["question", "gold"]).slice(0, limit)
        rows = rows.filter(rows["gold"].is_valid())
        texts = [training_prompt(recipe, question) for question in rows["question"].to_pylist()]
        most = recipe.max_prompt
        yield Asked(stage, key, recipe.task, split, texts, 0, most, "grpo.max_prompt", least, recipe.add_bos)


def measure(tokenizer: Tokenizer, unknown: int | None, first: list[int], texts: list[str]) -> tuple[list[int], float]:
    """The tokens of each text behind the ids put `first`, and the share of all tokens that is unknown."""
    lengths: list[int] = []
    strange = 0
    for start in range(0, len(texts), CHUNK):
        encoded = tokenizer.encode_batch_fast(texts[start : start + CHUNK], add_special_tokens=False)
        lengths += [len(prepend(first, encoding.ids)) for encoding in encoded]
        strange += sum(encoding.ids.count(unknown) for encoding in encoded) if unknown is not None else 0
    return lengths, strange / max(1, sum(lengths))


def load_tokenizer(path: Path) -> tuple[Tokenizer, int | None]:
    """A tokenizer.json without what it says of inference (truncation, padding), and its unknown token's id."""
    data = tokenizer_files.read(path)
    tokenizer_files.take_out_settings(data)
    tokenizer, unknown = tokenizer_files.load(data, str(path)), tokenizer_files.unknown(data)
    return tokenizer, tokenizer.token_to_id(unknown) if unknown else None


def verdict(asked: Asked, lengths: list[int], unknown: float) -> tuple[str | None, str | None]:
    """The error and the warning about one entry, if any."""
    long = [i for i, length in enumerate(lengths) if length + asked.room > asked.limit]
    fitting, least = len(lengths) - len(long), len(lengths) if asked.least is None else asked.least
    what = f"{asked.key}: '{asked.task}' ({asked.split})"
    if not lengths:
        return f"{what}: there are no items; check its data", None
    if unknown > MOST_UNKNOWN:
        return f"{what}: {unknown:.0%} of its tokens are unknown to the tokenizer; choose another data.tokenizer", None
    worst = max(range(len(lengths)), key=lengths.__getitem__)
    room = f" and {asked.room} to write" if asked.room else ""
    size = f"item {worst} is the longest, {lengths[worst]} tokens{room}, and {asked.limit_key} is {asked.limit}"
    if fitting < max(1, least):
        way = (
            f"raise {asked.limit_key}"
            if asked.limit_key != "model.sequence_length"
            else f"lower {asked.stage}.max_tokens"
        )
        if asked.stage != "grpo":
            return f"{what}: {len(long)} of {len(lengths)} items do not fit: {size}; {way} or give fewer shots", None
        return f"{what}: {fitting} questions fit, fewer than {least} (grpo.prompts): {size}; {way} or ask fewer", None
    if long:
        fate = "left out" if asked.stage == "grpo" else "cut from the left"
        return None, f"{what}: {len(long)} of {len(lengths)} items will be {fate}: {size}"
    return None, None


def run(ctx: Context) -> dict[str, Any]:
    from transformers import AutoTokenizer

    (folder,) = (path for role, path in ctx.inputs.items() if role in ("tokenizer", "checkpoint"))
    tokenizer, unknown_id = load_tokenizer(folder / "tokenizer.json")
    whole = AutoTokenizer.from_pretrained(folder)
    rows: list[dict[str, Any]] = []
    errors: list[str] = []
    warnings: list[str] = []
    entries = [asked for asked in ctx.dag.asked if asked.stage in ctx.dag.asking(ctx.job.point)]
    for done, (stage, key, entry) in enumerate(entries):
        ctx.progress(done, len(entries), "tasks")
        try:
            for texts in asked(ctx, stage, key, entry):
                if isinstance(texts, str):
                    rows.append({"stage": stage, "task": entry.task, "unchecked": texts})
                    continue
                lengths, unknown = measure(tokenizer, unknown_id, first_ids(whole, texts.add_bos), texts.texts)
                error, warning = verdict(texts, lengths, unknown)
                errors += filter(None, [error])
                warnings += filter(None, [warning])
                rows.append(describe(texts, lengths, unknown))
                ctx.say(", ".join(f"{name} {value}" for name, value in rows[-1].items()))
        except PipelineError as error:  # fewer training items than shots, no token to begin with
            errors.append(f"{key}: {error}")
    for warning in warnings:
        ctx.say(f"warning: {warning}")
    if errors:
        raise PipelineError(f"scale '{ctx.dag.name}': " + "\n".join(errors))
    (ctx.out / "tasks.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    return {"tasks": rows, "warnings": warnings}


def describe(asked: Asked, lengths: list[int], unknown: float) -> dict[str, Any]:
    """One entry of tasks.json."""
    longest = max(lengths, default=0)
    return {
        "stage": asked.stage,
        "task": asked.task,
        "split": asked.split,
        "shots": asked.shots,
        "items": len(lengths),
        "longest": longest,
        "item": lengths.index(longest) if lengths else None,
        "room": asked.room,
        "limit": asked.limit,
        "too_long": sum(length + asked.room > asked.limit for length in lengths),
        "unknown": round(unknown, 4),
    }


if __name__ == "__main__":
    main("preflight", run, __doc__)
