"""Benchdata: the files of one published evaluation data set, in hub layout and verified, and the items of its tasks.

    python -m pipeline.stages.benchdata --scale math --source gsm8k

The data set is one of `benchmarks` in config/sources.yaml: from the Hugging Face hub, on a machine with a network, or
from a folder of this machine that is laid out as the hub (`python -m pipeline.tasks.offline_hub.layout` makes one
from the data sets' original files).

Out: files/, laid out as the repo; tasks/<task>/{train,test}.parquet for each task that asks about it, with the columns
question, answer, gold, shot (the answer as a worked example shows it) and doc (a digest of the whole row). A row whose
answer cannot be read keeps its place, so that others keep their worked examples, but has no gold: no stage asks it. The
record counts and names these rows (`without_answer`); if they are many, this is not the data set that was meant.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts.record import sha256_file
from pipeline.config.globs import find, matches
from pipeline.data.hub import Repository
from pipeline.data.registry import BenchmarkData
from pipeline.data.results import BenchdataMetrics, UnreadRows
from pipeline.errors import PipelineError
from pipeline.runner import Context, main
from pipeline.tasks import HUB, HubTask
from pipeline.tasks.offline_hub.mirror import FILES
from pipeline.tasks.task import Row

UNREAD, UNREAD_SHARE = 10, 0.01  # rows without a readable answer: more than both is an error
WAY_OUT = "run this on a machine with a network, or give `path` in config/sources.yaml"
ITEMS = pa.schema([(name, pa.string()) for name in ("question", "answer", "gold", "shot", "doc")])


class Fetched(NamedTuple):
    """The folder that holds a data set's files, and the commit they are of ("local" for a folder of this machine)."""

    folder: Path
    commit: str


class Written(NamedTuple):
    """How many items one split of a task has, and the names of rows without a readable answer."""

    items: int
    unread: list[str]


def fetch(name: str, data: BenchmarkData, state: Path) -> Fetched:
    """Have the data set's files on this machine, downloaded if need be.

    Raises:
        PipelineError: the hub cannot be reached, or does not have the repo or the revision.
    """
    if data.path is not None:
        return Fetched(Path(data.path), "local")
    repository = Repository(data.repo, data.revision, "dataset", state, way_out=WAY_OUT, asker=f"benchmarks.{name}")
    for path in repository.files:
        if any(matches(path, pattern) for pattern in data.files):
            repository.fetch(path)  # `gather` compares it with the registry's digest, which is another reason to stop
    return Fetched(repository.folder, repository.commit)


def gather(name: str, data: BenchmarkData, source: Path, out: Path) -> list[str]:
    """Copy the files the registry asks for, keeping their layout, and check their digests; returns their paths.

    Raises:
        PipelineError: a pattern without a file, a file with another digest, or a digest without a file.
    """
    paths: set[str] = set()
    for pattern in data.files:
        taken = {path.relative_to(source).as_posix() for path in find(source, pattern)}
        if not taken:
            raise PipelineError(f"benchmarks.{name}: no file {source / pattern}; correct `path` or `files`")
        paths |= taken
    for path in sorted(paths):
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, out / path)
    for path, expected in data.sha256.items():
        if path not in paths:
            raise PipelineError(f"benchmarks.{name}.sha256: '{path}' is not among `files`")
        digest = sha256_file(out / path)
        if digest != expected:
            raise PipelineError(
                f"{source / path}: its SHA-256 is {digest}, not the one in config/sources.yaml ({expected}); it is "
                f"another version of {data.repo}, or damaged"
            )
    return sorted(paths)


def doc_digest(row: Row) -> str:
    """A row of the data set as a digest: lm-eval compares rows so that no item is its own worked example."""
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_items(task: HubTask, files: Path, pattern: str, out: Path) -> Written:
    """Write the items of one split of a task.

    Raises:
        PipelineError: a missing column, or too many rows without a readable answer.
    """
    items: list[Row] = []
    unread = []
    for path in sorted(files.glob(pattern)):
        for i, row in enumerate(pq.read_table(path).to_pylist()):
            try:
                item = task.item(row)
            except KeyError as error:
                raise PipelineError(f"{path}: row {i} is not one of {task.name}: {error!r}") from None
            except (TypeError, ValueError, IndexError, AttributeError):  # a null, or another type, where text is meant
                item = {}
            filled = {name: item.get(name) or "" for name in ("question", "answer")}
            gold = item.get("gold") or None
            if gold is None or not all(filled.values()):
                unread.append(f"{path.relative_to(files)}: row {i}")
                gold = None
            items.append({"shot": filled["answer"]} | item | filled | {"gold": gold, "doc": doc_digest(row)})
    if len(unread) > max(UNREAD, UNREAD_SHARE * len(items)) or 2 * len(unread) > len(items):
        raise PipelineError(
            f"{files / pattern}: {len(unread)} of {len(items)} rows have no answer that {task.name} can read (the "
            f"first: {'; '.join(unread[:3])}): this is another data set, or another version of it"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(items, ITEMS), out)
    return Written(len(items), unread)


def run(ctx: Context) -> dict[str, Any]:
    name = ctx.job.source
    assert name is not None
    data = ctx.dag.benchmarks[name]
    fetched, files = fetch(name, data, ctx.state), ctx.out / FILES
    paths = gather(name, data, fetched.folder, files)
    counts: dict[str, int] = {}
    without_answer: dict[str, UnreadRows] = {}
    for task in (task for task in HUB.values() if task.data == name):
        for split, pattern in (("train", task.train), ("test", task.test)):
            if pattern is None or not any(files.glob(pattern)):
                continue
            written = write_items(task, files, pattern, ctx.out / "tasks" / task.items / f"{split}.parquet")
            counts[f"{task.name}_{split}"] = written.items
            if written.unread:
                without_answer[f"{task.name}_{split}"] = UnreadRows(count=len(written.unread), rows=written.unread)
                ctx.say(f"left out, no answer can be read: {'; '.join(written.unread)}")
    if data.revision is None and data.path is None:
        ctx.say(f"no revision is pinned; took the hub's newest, {fetched.commit}")
    ctx.say(f"{len(paths)} files; " + ", ".join(f"{split} {n}" for split, n in counts.items()))
    return BenchdataMetrics(
        revision=fetched.commit, files=len(paths), items=counts, without_answer=without_answer
    ).plain()


if __name__ == "__main__":
    main("benchdata", run, __doc__)
