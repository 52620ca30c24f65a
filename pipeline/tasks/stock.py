"""lm-evaluation-harness's own tasks: their names, and how many tokens each lets a model write.

The index of all of them takes lm-eval seven CPU seconds, so its names are kept in the user's cache folder.
"""

import contextlib
import json
import os
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import tasks
from pipeline.artifacts.store import write_atomic
from pipeline.tasks import HUB, TASKS

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

OWN_TASKS = Path(tasks.__file__).with_name("lm_eval")
DEFAULT_TOKENS = 256  # what lm-eval's vLLM backend lets a model write where a task does not say


def task_manager(asked: Iterable[str]) -> "TaskManager":
    """lm-eval's index of tasks; its own 228 folders are read only if a task needs them."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    names = list(asked)
    unknown = any(name not in TASKS for name in names)
    stock = Path(lm_eval.__file__).with_name("tasks")
    folders = {str(stock / folder) for name in names if name in HUB and (folder := HUB[name].stock)}
    return TaskManager(include_path=[str(OWN_TASKS), *sorted(folders)], include_defaults=unknown)


def cache_file() -> Path:
    """Where the names of the installed lm-eval's tasks are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(root, "moe-sparsity", f"lm-eval-{metadata.version('lm-eval')}.json")


def stock_names(asked: Iterable[str]) -> set[str]:
    """The names of lm-eval's own tasks, groups and tags.

    They are read again if one of `asked` is not among those kept: a task may have been added to lm-eval.
    """
    path = cache_file()
    try:
        kept = {str(name) for name in json.loads(path.read_text())}
    except (OSError, ValueError, TypeError):
        kept = set()
    if kept.issuperset(asked):
        return kept
    names = _read_index()
    with contextlib.suppress(OSError):  # a home that cannot be written costs the seconds again
        write_atomic(path, json.dumps(names))
    return set(names)


@cache
def _read_index() -> list[str]:
    from lm_eval.tasks import TaskManager

    return sorted(TaskManager().all_tasks)


def answer_tokens(task: str) -> int | None:
    """The tokens that a task of the project lets a model write under lm-eval; None where it scores given answers."""
    entry = task_manager([task]).task_index[task]
    settings = entry.cfg or {}
    if settings.get("output_type") != "generate_until":
        return None
    return int((settings.get("generation_kwargs") or {}).get("max_gen_toks", DEFAULT_TOKENS))
