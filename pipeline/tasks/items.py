"""Items of tasks as the evaluation stages read them, and chunks of work that survive a kill."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.artifacts.store import write_atomic
from pipeline.config.evaluations import EvalTask
from pipeline.errors import PipelineError
from pipeline.tasks import TASKS, HubTask
from pipeline.tasks.task import Row

SHOTS_SEED = 42  # the paper's lm-eval runs are called with --seed 42


@dataclass(frozen=True)
class Question:
    """A test item with the text put to the model: worked examples, if any, and the item's own prompt."""

    task: str
    item: int
    prompt: str
    question: str
    answer: str
    gold: str | None  # None where benchdata could not read it


def draw_shots(pool: list[Row], rows: list[Row], shots: int, seed: int, spare: bool) -> list[list[Row]]:
    """The worked examples of each row, drawn as lm-eval's ContextSampler does: one stream of draws for all rows.

    With `spare` one more is drawn, and the row itself is dropped if it is among them.
    """
    stream, drawn = random.Random(seed), []
    for row in rows:
        examples = stream.sample(pool, shots + spare)
        if spare:
            examples = [example for example in examples if example["doc"] != row["doc"]][:shots]
        if len(examples) < shots:  # the row is in the pool more than once
            examples = stream.sample([example for example in pool if example["doc"] != row["doc"]], shots)
        drawn.append(examples)
    return drawn


def read_questions(folder: Path, asked: EvalTask, seed: int = SHOTS_SEED) -> list[Question]:
    """The test items of a task, in file order, each with its worked examples.

    Args:
        folder: holds the task's train.parquet and test.parquet.
        asked: the entry of an evaluation that asks them: task, shots, limit.
        seed: of the draw of worked examples.

    The project's own tasks take the first `shots` training items for every question, the published ones draw them for
    each question as lm-eval does with this seed.

    Raises:
        PipelineError: fewer training items than shots.
    """
    task = TASKS[asked.task]
    rows = pq.read_table(folder / "test.parquet").slice(0, asked.limit).to_pylist()
    examples: list[list[Row]] = [[]] * len(rows)
    if asked.shots:
        path = folder / "train.parquet"
        pool = pq.read_table(path).to_pylist() if path.exists() else []
        spare = isinstance(task, HubTask) and task.spare
        if len(pool) < asked.shots + spare:
            raise PipelineError(f"{path}: {len(pool)} items, fewer than {asked.shots + spare} for {asked.shots} shots")
        drawn = isinstance(task, HubTask)
        examples = draw_shots(pool, rows, asked.shots, seed, spare) if drawn else [pool[: asked.shots]] * len(rows)
    return [
        Question(
            asked.task,
            i,
            task.shots([(shot["question"], shot.get("shot") or shot["answer"]) for shot in shots_of_row])
            + task.prompt(row["question"]),
            row["question"],
            row["answer"],
            row["gold"],
        )
        for i, (row, shots_of_row) in enumerate(zip(rows, examples, strict=True))
    ]


def with_answer(questions: list[Question], field: str = "gold") -> tuple[list[Question], int]:
    """The questions that can be judged, and how many are left out; they keep their numbers and worked examples.

    Args:
        field: of `Question`; what has to be there.

    Raises:
        PipelineError: none is left.
    """
    answered = [question for question in questions if getattr(question, field)]
    if questions and not answered:
        raise PipelineError(
            f"task '{questions[0].task}': none of the {len(questions)} items asked has an answer that can be read; "
            f"raise `limit`, or see `without_answer` in the record of the benchdata artifact"
        )
    return answered, len(questions) - len(answered)


def in_chunks(
    state: Path,
    name: str,
    items: Sequence[Any],
    size: int,
    ask: Callable[[Sequence[Any]], list[Any]],
    progress: Callable[[float, float, str], None],
) -> list[Any]:
    """`ask` about `size` items at a time; the answers of finished chunks are kept in the state folder, as JSON.

    A chunk's answers must depend on the chunk alone, so that a run continued after a kill makes the same ones.

    Args:
        name: of the file of answers; names all that is asked but the items.
        progress: called with items done, all items, and their unit.
    """
    answers: list[Any] = []
    progress(0, len(items), f"items of {name}")
    for start in range(0, len(items), size):
        path = state / f"{name}-{start:06d}.json"
        if not path.exists():
            write_atomic(path, json.dumps(ask(items[start : start + size])))
        answers += json.loads(path.read_text())
        progress(min(start + size, len(items)), len(items), f"items of {name}")
    return answers
