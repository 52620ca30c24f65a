"""Tasks the project defines itself: how a question is put, how an answer reads, and how it is checked.

One definition serves lm-eval (through the YAML beside this file, kept in step by a test), decoding, task loss and the
GRPO reward. An item is a row of `tasks/<task>/{train,test}.parquet` in the corpus artifact, with the columns
`question`, `answer` (all the text after the prompt and one space) and `gold` (the final answer), and for multiple
choice `choices` and `label`.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A task over the items of a generated source."""

    name: str
    source_kind: str
    items: str  # the folder of the corpus artifact's tasks/ that holds its items
    template: str  # the prompt, with {question}
    final: str  # regex whose first group is the final answer in the model's text
    loss_on_gold: bool = False  # task loss is that of the final answer alone, not of all the text after the prompt

    def prompt(self, question: str) -> str:
        """The text put to the model, without a trailing space."""
        return self.template.format(question=question)

    def continuation(self, answer: str) -> str:
        """What follows the prompt when the model answers as the training text does."""
        return " " + answer

    def shots(self, examples: list[tuple[str, str]]) -> str:
        """Worked examples (question, answer) to put before the prompt; empty for none."""
        return "".join(self.prompt(q) + self.continuation(a) + "\n\n" for q, a in examples)

    def extract(self, text: str) -> str | None:
        """The final answer in a model's text; None if it gives none. The first match counts, as in GSM8K's filter."""
        match = re.search(self.final, text)
        return match.group(1) if match else None


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        # The full stop that ends every fact would dilute the loss of its values.
        Task("recall", "facts", "facts", "{question} :", final=r"^\s*(.+?)\s*(?:\.|$)", loss_on_gold=True),
        Task("recall_choice", "facts", "facts", "{question} :", final=r"^\s*(.+?)\s*(?:\.|$)", loss_on_gold=True),
        Task("sums", "sums", "sums", "question : {question} answer :", final=r"#### (\d+)"),
    )
}
