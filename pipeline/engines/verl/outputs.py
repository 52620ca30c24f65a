"""What verl leaves behind: its metrics by step, the step that a run continues from, and the weights to publish."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.artifacts.store import write_atomic
from pipeline.errors import PipelineError

TRACKER = "latest_checkpointed_iteration.txt"  # verl resumes from the step that this file names


def logged(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(step, metrics) of each whole line of a log; a killed run may have left a part of a last one."""
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            return
        yield entry["step"], entry["data"]


def read_metrics(work: Path) -> dict[int, dict[str, Any]]:
    """verl's metrics by step, over all launches so far; of a step that was done twice, the later launch's count."""
    steps: dict[int, dict[str, Any]] = {}
    for path in sorted(work.glob("metrics-*.jsonl")):
        steps |= dict(logged(path))
    return dict(sorted(steps.items()))


def resume_step(work: Path) -> int:
    """The last step whose checkpoint and metrics are both whole (0: none); verl will continue from there.

    verl logs a step after it has saved it, so that a logged step's checkpoint is complete; a checkpoint without its log
    line was written by a run that was killed in between.
    """
    checkpoints, logged = work / "checkpoints", read_metrics(work)
    saved = [int(path.name.removeprefix("global_step_")) for path in checkpoints.glob("global_step_*")]
    step = max((step for step in saved if step in logged), default=0)
    for other in saved:
        if other > step:
            shutil.rmtree(checkpoints / f"global_step_{other}")
    if step:
        write_atomic(checkpoints / TRACKER, str(step))
    else:
        (checkpoints / TRACKER).unlink(missing_ok=True)
    return step


def publish_weights(trained: Path, checkpoint: Path, out: Path) -> None:
    """Write the trained weights as `checkpoint` is laid out: same files, names, shapes and types.

    verl's own `model_merger` casts everything to bfloat16; the actor also saves a whole model in its own precision.

    Args:
        trained: Hugging Face folder written by verl's actor.
        checkpoint: Hugging Face folder that training started from.

    Raises:
        PipelineError: the trained model has other tensors than the checkpoint.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    where: dict[str, Path] = {}
    for path in trained.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            where |= dict.fromkeys(file.keys(), path)
    for path in sorted(p for p in checkpoint.iterdir() if p.is_file() and not p.name.endswith("record.json")):
        if path.suffix != ".safetensors":
            shutil.copyfile(path, out / path.name)
            continue
        tensors = {}
        with safe_open(path, framework="pt") as old:
            names = old.keys()
            for name in names:
                if name not in where:
                    raise PipelineError(f"{trained}: verl's model has no tensor '{name}', which {path} has")
                with safe_open(where.pop(name), framework="pt") as new:
                    before, after = old.get_tensor(name), new.get_tensor(name)
                if before.shape != after.shape:
                    raise PipelineError(
                        f"{trained}: '{name}' is {list(after.shape)} where {path} has {list(before.shape)}"
                    )
                tensors[name] = after.to(before.dtype)
            save_file(tensors, out / path.name, metadata=old.metadata())
    if where:
        raise PipelineError(
            f"{trained}: verl's model has tensors that {checkpoint} has not: {', '.join(sorted(where))}"
        )
