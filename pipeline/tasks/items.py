"""Items of the project's own tasks as the evaluation stages read them, and chunks of work that survive a kill."""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.artifact import write_atomic
from pipeline.config import EvalTask
from pipeline.dag import Dag
from pipeline.errors import PipelineError
from pipeline.tasks import TASKS

Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """A test item with the text put to the model: worked examples, if any, and the item's own prompt."""

    task: str
    item: int
    prompt: str
    question: str
    answer: str
    gold: str


def items_folder(dag: Dag, inputs: dict[str, Path], task: str) -> Path:
    """The folder of a task's train.parquet and test.parquet.

    Args:
        inputs: folders of the upstream artifacts by role (`Context.inputs`).

    Raises:
        PipelineError: not one of the project's own tasks.
    """
    source = dag.task_source(task)
    if source is None:
        raise PipelineError(
            f"scale '{dag.name}': '{task}' is not a task of this project ({', '.join(TASKS)}); lm-eval's stock tasks "
            f"can be asked of the benchmark stage only"
        )
    return inputs[f"corpus/{source}"] / "tasks" / TASKS[task].items


def read_questions(dag: Dag, inputs: dict[str, Path], asked: EvalTask) -> list[Question]:
    """The test items of a task, in file order; the first `shots` training items are the worked examples.

    Raises:
        PipelineError: an unknown task, or fewer training items than shots.
    """
    folder, task = items_folder(dag, inputs, asked.task), TASKS[asked.task]
    examples = pq.read_table(folder / "train.parquet").slice(0, asked.shots).to_pylist()
    if len(examples) < asked.shots:
        raise PipelineError(f"{folder / 'train.parquet'}: {len(examples)} items, fewer than {asked.shots} shots")
    shots = task.shots([(row["question"], row["answer"]) for row in examples])
    rows = pq.read_table(folder / "test.parquet").slice(0, asked.limit).to_pylist()
    return [
        Question(asked.task, i, shots + task.prompt(row["question"]), row["question"], row["answer"], row["gold"])
        for i, row in enumerate(rows)
    ]


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


def mean_row(task: str, metric: str, values: Sequence[float]) -> Row:
    """A row of a record's results: the mean over items and its standard error (sample deviation / sqrt(n))."""
    stderr = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"task": task, "metric": metric, "value": statistics.fmean(values), "stderr": stderr, "n": len(values)}
