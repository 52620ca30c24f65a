"""The figures there are: their titles, what each is made of, and which of them a table has no data for."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import pandas as pd

from pipeline.analysis.metrics import AT, MEMORISATION, REASONING, kind
from pipeline.dag.stages import BASE, EVALUATIONS, GRPO

# What figures are made of: whether a table has it, and what to say if not.
NEEDS: dict[str, tuple[Callable[[pd.DataFrame], bool], str]] = {
    "loss": (lambda r: bool((r["metric"] == "train_loss").any()), "no training loss (adopted checkpoints have none)"),
    "memorisation": (lambda r: _asked(r, MEMORISATION), "no task that asks for memorisation"),
    "reasoning": (lambda r: _asked(r, REASONING), "no task that asks for reasoning"),
    "taskloss": (lambda r: bool((r["stage"] == "taskloss").any()), "no task loss"),
    "accuracy": (lambda r: bool((r["stage"] == "benchmark").any()), "no benchmark"),
    "votes": (lambda r: bool(r["metric"].str.fullmatch(AT.pattern).any()), "no sampled answers (stage decode)"),
    "grpo": (lambda r: bool((r["variant"] == GRPO).any()), "no model after GRPO"),
    "kept": (
        lambda r: bool((~r["variant"].isin([BASE, GRPO])).any()),
        "no intermediate checkpoint (`pretrain.keep`)",
    ),
    "shots": (lambda r: _several_shots(r), "no task asked with several numbers of worked examples"),
}


class Figure(NamedTuple):
    """A figure: its title, those of the paper that it is like, and what it cannot do without (keys of `NEEDS`)."""

    title: str
    paper: str
    needs: tuple[str, ...]

    @property
    def cited(self) -> str:
        """`Task loss against training loss (Figure 2)`."""
        return f"{self.title} ({self.paper})" if self.paper else self.title


FIGURES: dict[str, Figure] = {
    "finding": Figure("Two ways to lower the training loss", "", ("loss", "memorisation", "reasoning")),
    "overview": Figure(
        "Memorisation and reasoning against total parameters", "Figure 1", ("memorisation", "reasoning")
    ),
    "loss": Figure("Pre-training loss against total parameters", "Figure 1", ("loss",)),
    "task_loss": Figure("Task loss against total parameters and tokens per parameter", "Figure 1", ("taskloss",)),
    "accuracy": Figure("Accuracy against total parameters and tokens per parameter", "Figure 7", ("accuracy",)),
    "task_loss_by_loss": Figure("Task loss against training loss", "Figure 2", ("taskloss", "loss")),
    "accuracy_by_loss": Figure("Accuracy against training loss", "Figure 3", ("accuracy", "loss")),
    "task_loss_by_density": Figure("Task loss against density", "Figure 5", ("taskloss",)),
    "accuracy_by_density": Figure("Accuracy against density", "Figures 5 and 8", ("accuracy",)),
    "accuracy_by_shots": Figure("Accuracy against the number of worked examples", "Figure 11", ("accuracy", "shots")),
    "error_against_loss": Figure("Error against training loss", "Figure 4", ("accuracy", "loss", "kept")),
    "grpo": Figure("Before and after GRPO", "Figure 6", ("grpo",)),
    "self_consistency": Figure("Self-consistency against the number of samples", "Figure 6", ("votes",)),
    "training": Figure("Training loss", "", ("loss",)),
    "grpo_reward": Figure("GRPO reward", "", ("grpo",)),
}


def absent(results: pd.DataFrame, drawn: Iterable[str]) -> list[tuple[str, str]]:
    """The title of each figure that is not among `drawn`, and why it is not."""
    names, said = set(drawn), []
    for name, figure in FIGURES.items():
        if name not in names:
            lacking = [NEEDS[need][1] for need in figure.needs if not NEEDS[need][0](results)]
            said.append((figure.cited, ", ".join(lacking) or "too few models or values to compare"))
    return said


def _asked(results: pd.DataFrame, side: str) -> bool:
    tasks = results.loc[results["stage"].isin(EVALUATIONS), "task"].unique()
    return any(kind(str(task)) == side for task in tasks)


def _several_shots(results: pd.DataFrame) -> bool:
    asked = results[results["stage"] == "benchmark"]
    return bool((asked.groupby("task")["shots"].nunique() > 1).any())
