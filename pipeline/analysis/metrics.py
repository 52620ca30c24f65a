"""What a number of the tables is: of which entry of which stage, what its metric measures, of what kind its task is."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from pipeline.dag.stages import EVALUATIONS
from pipeline.tasks import TASKS

MEMORISATION, REASONING, OTHER = "memorisation", "reasoning", "other"
AT = re.compile(r"(majority|coverage)@(\d+)")


# What metrics are called, with their unit: those of training, of curves, and of the evaluations.
WORDS = {
    "train_loss": "training loss (nats per token)",
    "metrics/loss": "training loss (nats per token)",
    "validation_loss": "validation loss (nats per token)",
    "validation/loss": "validation loss (nats per token)",
    "training/reward": "training reward",
    "validation/reward": "validation reward",
    "nll": "task loss (nats per token)",
    "nll_item": "task loss (nats per item)",
    "bits_token": "task loss (bits per token)",
    "bits_byte": "task loss (bits per byte)",
    "stored_bits": "stored bits per fact",
    "acc": "accuracy",
    "acc_norm": "accuracy (by length)",
    "exact_match": "exact match",
}
FILTERS = {  # lm-eval's: how the answer was read off the text
    **{"none": "", "strict-match": "strict", "flexible-extract": "flexible", "remove_whitespace": ""},
    **{"create_test": "", "extract_code": ""},
}


def words(metric: str) -> str:
    """A metric as people call it: "exact match (strict)" for lm-eval's "exact_match,strict-match"."""
    if match := AT.fullmatch(metric):
        return f"{match[1]} of {match[2]} samples"
    name, _, how = metric.partition(",")
    name = WORDS.get(name, name.replace("_", " "))
    how = FILTERS.get(how, how.replace("_", " ").replace("-", " "))
    return f"{name} ({how})" if how else name


class Key(NamedTuple):
    """Which number of a model. `entry` names one of the ways in which the stage asks the task (`tables.entries`)."""

    stage: str
    task: str
    entry: str
    metric: str

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> "Key":
        """The key of a row of the tidy table."""
        return cls(*(row[name] for name in cls._fields))

    @property
    def heading(self) -> str:
        """The number in words, as columns and comparisons call it: "gsm8k, exact match (strict)"."""
        return f"{self.entry}, {words(self.metric)}"

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table that hold this number, one per model."""
        return frame[(frame[list(self._fields)] == pd.Series(self._asdict())).all(axis=1)]


# The losses of pre-training, in the order in which they are shown.
LOSSES = [Key("pretrain", "pretrain", "pretrain", metric) for metric in ("train_loss", "validation_loss")]


def kind(task: str) -> str:
    """Whether a task asks for memorisation or for reasoning, or neither is known."""
    return TASKS[task].kind if task in TASKS else OTHER


def family(stage: str, metric: str) -> str:
    """What a metric measures: "accuracy", "bits", "loss", "majority", "coverage" or "other"."""
    if match := AT.fullmatch(metric):
        return match[1]
    if "loss" in metric or (stage == "taskloss" and "stored" not in metric):
        return "loss"
    if stage == "taskloss":
        return "bits"
    return "accuracy" if stage == "benchmark" else "other"


def primary(results: pd.DataFrame, measured: str) -> list[Key]:
    """The main number of each entry in a family: the first metric its record lists, or the most samples of a vote."""
    keys: dict[str, Key] = {}
    for key in distinct(results):
        if family(key.stage, key.metric) != measured or key.stage not in EVALUATIONS:
            continue
        known = keys.setdefault(key.entry, key)
        if measured in ("majority", "coverage") and _samples(key.metric) > _samples(known.metric):
            keys[key.entry] = key
    return list(keys.values())


def _samples(metric: str) -> int:
    match = AT.fullmatch(metric)
    return int(match[2]) if match else 0


def distinct(results: pd.DataFrame) -> list[Key]:
    columns = results[list(Key._fields)].drop_duplicates()
    return [Key(*values) for values in columns.itertuples(index=False, name=None)]
