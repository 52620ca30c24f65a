"""What a record says of where it was made: code, packages, machine."""

import os
import platform
import subprocess
from importlib import metadata
from typing import Any

from pipeline.runtime.execution import Execution

PACKAGES = ("torch", "megatron-core", "transformers", "vllm", "verl", "lm-eval", "pyarrow", "pandas", "numpy")


def commit() -> str | None:
    """Of the working directory's repository, with "-dirty" for changes; None without one."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on, those installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(execution: Execution) -> dict[str, Any]:
    """The processor and its cores; the first GPU's name, where one is used."""
    found: dict[str, Any] = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if execution.on_gpu:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
        found["gpu"] = names[0] if names else None
    return found
