"""Preflight: whether every prompt, worked example and answer fits, before anything is trained.

    python -m pipeline.stages.preflight --scale mini [--point NAME]

Evaluations and post-training meet a prompt that is too long after weeks of pre-training. This job needs only the
tokenizer and the tasks' items, and pre-training waits for it (`Dag.gates`). There is one a scale, and one for each
point that adopts a checkpoint with a tokenizer of its own.

For each entry of `benchmark`, `decode`, `taskloss` and for `grpo` it counts the tokens of each item as the stage will
put it, and compares them with what holds them:

- decode: prompt and `max_tokens`, with `model.sequence_length`. The stage cannot go on with a longer one.
- taskloss: prompt, answer, and the one token that vLLM insists on, with `max_length`. Neither can this.
- benchmark: prompt and what lm-eval lets the model write, or a given answer and one token, with `max_length`. lm-eval
  cuts what is longer from the left, so that is a warning, and an error only where it cuts every prompt. Prompts are
  those of `tasks`, which are lm-eval's (tested), but for MBPP and lm-eval's other tasks: those are not checked.
- grpo: prompt, with `max_prompt`. Longer questions are left out: a warning, and an error where too few are left.

A text of which more than half the tokens are unknown to the tokenizer is an error too.

Out: tasks.json, an entry a task and split: stage, task, split, shots, items, longest (tokens), item (the longest),
limit, too_long (items), unknown (share of tokens), or `unchecked` with the reason. The metrics have them and the
warnings. All that is wrong is said at once.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tokenizers import Tokenizer

from pipeline.checks import asked_tasks
from pipeline.engines import tokenizer_files
from pipeline.errors import PipelineError
from pipeline.stage import Context, main
from pipeline.tasks import TASKS, stock
from pipeline.tasks.items import items_folder, read_questions, with_answer
from pipeline.tasks.prompts import begun, first_ids, training_prompt

CHUNK = 4096  # texts tokenised at a time
MOST_UNKNOWN = 0.5  # share of a task's tokens
OTHERWISE_PUT = ("mbpp", "mbpp_plus")  # lm-eval puts these with examples and tests of its own


@dataclass(frozen=True)
class Asked:
    """The texts that a stage puts for one entry, and what has to hold them.

    Attributes:
        key: of the entry, below the scale.
        texts: a text an item.
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


def asked(ctx: Context, stage: str, key: str, entry: Any) -> Iterator[Asked | str]:
    """How a stage puts the items of one entry; a reason in its place if that is not known here."""
    scale, context = ctx.scale, ctx.scale.model.sequence_length
    name = entry.task
    if stage == "grpo":
        folder = items_folder(ctx.dag, ctx.inputs, name)
        for split, limit, least in (("train", None, entry.prompts), ("test", entry.eval_items, 1)):
            rows = pq.read_table(folder / f"{split}.parquet", columns=["question", "gold"]).slice(0, limit)
            rows = rows.filter(rows["gold"].is_valid())
            texts = [training_prompt(entry, question) for question in rows["question"].to_pylist()]
            yield Asked(stage, key, name, split, texts, 0, entry.max_prompt, "grpo.max_prompt", least, entry.add_bos)
        return
    if name not in TASKS or (stage == "benchmark" and name in OTHERWISE_PUT):
        yield "its prompts are lm-eval's own"
        return
    settings = getattr(scale, stage)
    seed = {"seed": seed} if (seed := getattr(entry, "seed", None)) is not None else {}
    questions, task = read_questions(ctx.dag, ctx.inputs, entry, **seed), TASKS[name]
    scored = "gold" if stage == "decode" or task.loss_on_gold else "answer"
    if stage != "benchmark":  # lm-eval asks what has no answer that can be read too
        questions, _ = with_answer(questions, scored)
    texts, room, least = [question.prompt for question in questions], 1, None
    limit, limit_key = context, "model.sequence_length"
    if stage != "decode":
        limit, limit_key = settings.max_length, f"{stage}.max_length"
    written = settings.max_tokens if stage == "decode" else stock.answer_tokens(name) if stage == "benchmark" else None
    if written is not None:
        room = written
    else:
        texts = [one.prompt + task.continuation(getattr(one, scored) or "") for one in questions]
    if stage == "benchmark":
        least = 1
    yield Asked(stage, key, name, "test", texts, room, limit, limit_key, least, settings.add_bos, entry.shots)


def measure(tokenizer: Tokenizer, unknown: int | None, first: list[int], texts: list[str]) -> tuple[list[int], float]:
    """The tokens of each text behind the ids put `first`, and the share of all tokens that is unknown."""
    lengths: list[int] = []
    strange = 0
    for start in range(0, len(texts), CHUNK):
        encoded = tokenizer.encode_batch_fast(texts[start : start + CHUNK], add_special_tokens=False)
        lengths += [len(begun(one.ids, first)) for one in encoded]
        strange += sum(one.ids.count(unknown) for one in encoded) if unknown is not None else 0
    return lengths, strange / max(1, sum(lengths))


def load_tokenizer(path: Path) -> tuple[Tokenizer, int | None]:
    """A tokenizer.json without what it says of inference (truncation, padding), and its unknown token's id."""
    data = tokenizer_files.read(path)
    tokenizer_files.take_out_settings(data)
    tokenizer, unknown = tokenizer_files.load(data, str(path)), tokenizer_files.unknown(data)
    return tokenizer, tokenizer.token_to_id(unknown) if unknown else None


def verdict(one: Asked, lengths: list[int], unknown: float) -> tuple[str | None, str | None]:
    """The error and the warning about one entry, if any."""
    long = [i for i, length in enumerate(lengths) if length + one.room > one.limit]
    fitting, least = len(lengths) - len(long), len(lengths) if one.least is None else one.least
    what = f"{one.key}: '{one.task}' ({one.split})"
    if not lengths:
        return f"{what}: there are no items; check its data", None
    if unknown > MOST_UNKNOWN:
        return f"{what}: {unknown:.0%} of its tokens are unknown to the tokenizer; choose another data.tokenizer", None
    worst = max(range(len(lengths)), key=lengths.__getitem__)
    room = f" and {one.room} to write" if one.room else ""
    size = f"item {worst} is the longest, {lengths[worst]} tokens{room}, and {one.limit_key} is {one.limit}"
    if fitting < max(1, least):
        way = f"raise {one.limit_key}" if one.limit_key != "model.sequence_length" else f"lower {one.stage}.max_tokens"
        if one.stage != "grpo":
            return f"{what}: {len(long)} of {len(lengths)} items do not fit: {size}; {way} or give fewer shots", None
        return f"{what}: {fitting} questions fit, fewer than {least} (grpo.prompts): {size}; {way} or ask fewer", None
    if long:
        fate = "left out" if one.stage == "grpo" else "cut from the left"
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
    entries = [one for one in asked_tasks(ctx.dag) if one[0] in ctx.dag.asking(ctx.job.point)]
    for done, (stage, key, entry) in enumerate(entries):
        ctx.progress(done, len(entries), "tasks")
        try:
            for one in asked(ctx, stage, key, entry):
                if isinstance(one, str):
                    rows.append({"stage": stage, "task": entry.task, "unchecked": one})
                    continue
                lengths, unknown = measure(tokenizer, unknown_id, first_ids(whole, one.add_bos), one.texts)
                error, warning = verdict(one, lengths, unknown)
                errors += filter(None, [error])
                warnings += filter(None, [warning])
                rows.append(describe(one, lengths, unknown))
                ctx.say(", ".join(f"{name} {value}" for name, value in rows[-1].items()))
        except PipelineError as error:  # fewer training items than shots, no token to begin with
            errors.append(f"{key}: {error}")
    for warning in warnings:
        ctx.say(f"warning: {warning}")
    if errors:
        raise PipelineError(f"scale '{ctx.dag.name}': " + "\n".join(errors))
    (ctx.out / "tasks.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    return {"tasks": rows, "warnings": warnings}


def describe(one: Asked, lengths: list[int], unknown: float) -> dict[str, Any]:
    """One entry of tasks.json."""
    longest = max(lengths, default=0)
    return {
        "stage": one.stage,
        "task": one.task,
        "split": one.split,
        "shots": one.shots,
        "items": len(lengths),
        "longest": longest,
        "item": lengths.index(longest) if lengths else None,
        "room": one.room,
        "limit": one.limit,
        "too_long": sum(length + one.room > one.limit for length in lengths),
        "unknown": round(unknown, 4),
    }


if __name__ == "__main__":
    main("preflight", run, __doc__)
