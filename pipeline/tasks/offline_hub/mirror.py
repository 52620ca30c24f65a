"""Where lm-eval's stock tasks find their data without a network: a folder laid out as the Hugging Face hub.

`datasets.load_dataset("openai/gsm8k", "main")` takes a folder of that name in the working directory before it asks the
hub, and `evaluate.load("code_eval")` a folder `code_eval`. So the stock tasks run unedited.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.globs import find
from pipeline.tasks import HUB
from pipeline.tasks.code.tests import lay_code_eval

FILES = "files"  # the folder of a benchdata artifact that is laid out as the repo


def present_configs(readme: str, files: Path) -> str:
    """The data set's README.md with those of its configurations only whose files are there.

    A repo may have many (TriviaQA), and `datasets` looks for the first one's files whichever is asked for.
    """
    parts = readme.split("---\n", 2)
    if len(parts) < 3:
        return readme
    head = yaml.safe_load(parts[1]) or {}

    def present(config: dict[str, Any]) -> bool:
        entries = config.get("data_files", [])
        paths = [entry["path"] if isinstance(entry, dict) else entry for entry in always_list(entries)]
        return all(any(find(files, pattern)) for path in paths for pattern in always_list(path))

    configs = [config for config in head.get("configs", []) if present(config)]
    return f"---\n{yaml.safe_dump({'configs': configs})}---\n" if configs else readme


def always_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def lay_out(folder: Path, repos: Mapping[str, str], inputs: Mapping[str, Path], tasks: Iterable[str]) -> None:
    """Make the mirror for these tasks: links to the files of the benchdata artifacts, and the metric of code tasks.

    Args:
        repos: repository of the hub ("openai/gsm8k") of each benchmark's data.
        inputs: folders of the benchdata artifacts, by role ("benchdata/gsm8k").
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for task in (HUB[name] for name in dict.fromkeys(tasks) if name in HUB):
        files = (inputs[f"benchdata/{task.data}"] / FILES).resolve()
        repo = folder / repos[task.data]
        repo.mkdir(parents=True)
        for entry in files.iterdir():
            if entry.name == "README.md":
                (repo / entry.name).write_text(present_configs(entry.read_text(), files))
            else:
                (repo / entry.name).symlink_to(entry)
        if task.code and not (folder / "code_eval").exists():
            lay_code_eval(folder)


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Work in the mirror, with the cache of `datasets` beside it: another may hold other data of the same name.

    The cache has a relative path, because `datasets` makes the name of a lock file of the whole path, and a name may
    have 255 bytes.
    """
    import datasets

    os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # lm-eval's code tasks want it; the metric is our sandboxed one
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = Path("..", "datasets")
    folder.mkdir(parents=True, exist_ok=True)  # of own tasks alone there is nothing in it
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before
