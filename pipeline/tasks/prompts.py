"""Prompts as token ids, in the same way for every stage that asks a model something.

Whether a prompt begins with the tokenizer's beginning-of-text token (BOS) is set by `add_bos` of each stage: true,
false, or null for what the checkpoint's tokenizer does by itself. Worked examples and question are one text, so that
there is one BOS at its start and none before each example; a text that begins with BOS already gets no second one.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.recipes import Grpo
from pipeline.errors import PipelineError
from pipeline.tasks import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def first_ids(tokenizer: "PreTrainedTokenizerBase", add_bos: bool | None) -> list[int]:
    """The ids put before those of a prompt's text: BOS, or nothing.

    Raises:
        PipelineError: BOS is asked for, and the tokenizer has none.
    """
    bos = tokenizer.bos_token_id
    if add_bos is None:
        add_bos = bos is not None and tokenizer("")["input_ids"][:1] == [bos]
    elif add_bos and bos is None:
        raise PipelineError(
            f"{tokenizer.name_or_path}: `add_bos: true`, but the tokenizer has no beginning-of-text token (bos_token); "
            "say false, or null for what the tokenizer does by itself"
        )
    return [bos] if add_bos else []


def prepend(first: list[int], ids: list[int]) -> list[int]:
    """The ids of a text behind `first`, unless they begin with these already."""
    return ids if ids[: len(first)] == first else first + ids


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", text: str, add_bos: bool | None) -> list[int]:
    """The token ids that an engine gets for a prompt. (`PipelineError` as `first_ids`.)"""
    return prepend(first_ids(tokenizer, add_bos), tokenizer(text, add_special_tokens=False)["input_ids"])


def check_bos(checkpoint: Path, add_bos: bool | None) -> None:
    """Refuse `add_bos: true` for a checkpoint whose tokenizer has no BOS, before an engine starts."""
    from transformers import AutoTokenizer

    if add_bos:
        first_ids(AutoTokenizer.from_pretrained(checkpoint), add_bos)


def training_prompt(recipe: Grpo, question: str) -> str:
    """The text of a question that post-training puts to the model (`grpo.prompt`)."""
    return f"{question}\n\n" if recipe.prompt == "bare" else TASKS[recipe.task].prompt(question)
