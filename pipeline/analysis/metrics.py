"""What a number of the tables is: of which entry of which stage, what its metric measures, of what kind its task is."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from pipeline.tasks import TASKS

MEMORISATION, REASONING, OTHER = "memorisation", "reasoning", "other"
AT = re.compile(r"(majority|coverage)@(\d+)")


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
        return f"{self.entry} {self.metric}"

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table that hold this number, one a model."""
        return frame[(frame[list(self._fields)] == pd.Series(self._asdict())).all(axis=1)]


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


def primary(results: pd.DataFrame, wanted: str) -> list[Key]:
    """The numbers of a family, one an entry: the first metric its record lists, or the most samples of a vote."""
    found: dict[str, Key] = {}
    for key in distinct(results):
        if family(key.stage, key.metric) != wanted or key.stage not in ("benchmark", "decode", "taskloss"):
            continue
        known = found.setdefault(key.entry, key)
        if wanted in ("majority", "coverage") and _samples(key.metric) > _samples(known.metric):
            found[key.entry] = key
    return list(found.values())


def _samples(metric: str) -> int:
    match = AT.fullmatch(metric)
    return int(match[2]) if match else 0


def distinct(results: pd.DataFrame) -> list[Key]:
    columns = results[list(Key._fields)].drop_duplicates()
    return [Key(*values) for values in columns.itertuples(index=False, name=None)]
