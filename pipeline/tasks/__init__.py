"""Tasks: how a question is put, how an answer reads, and how it is checked.

One definition serves lm-eval, decoding, task loss and the GRPO reward. The project's own tasks ask about generated
text, and are lm-eval tasks by the YAML beside this file, kept in step by a test; the published ones (hub.py) are
lm-eval's stock tasks of the same name, unedited.

An item is a row of `tasks/<items>/{train,test}.parquet` in the corpus or benchdata artifact, with the columns
`question`, `answer` (all the text after the prompt and the separator) and `gold` (the final answer; null where a
published row's cannot be read), and for the generated multiple choice `choices` and `label`.
"""

from pipeline.data.sources import facts, sums
from pipeline.tasks.published import HUB
from pipeline.tasks.task import GeneratedTask, HubTask, Task

ENDING = r"^\s*+([^.\n]*[^.\s])\s*+(?:\.|$)"  # possessive: no text makes it slow


def _facts(name: str, choice: bool = False) -> GeneratedTask:
    return GeneratedTask(
        name=name,
        kind="memorisation",
        items="facts",
        source_kind="facts",
        template=facts.TEMPLATE,
        final=ENDING,
        choice=choice,
        loss_on_gold=True,  # the full stop that ends every fact would dilute the loss of its values
    )


OWN: dict[str, GeneratedTask] = {
    task.name: task
    for task in (
        _facts("recall"),
        _facts("recall_choice", choice=True),
        GeneratedTask(
            name="sums",
            kind="reasoning",
            items="sums",
            source_kind="sums",
            template=sums.TEMPLATE,
            final=r"#### (\d+)",
        ),
    )
}
TASKS: dict[str, Task] = {**OWN, **HUB}

__all__ = ["HUB", "OWN", "TASKS", "GeneratedTask", "HubTask", "Task"]
