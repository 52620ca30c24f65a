"""Benchdata: the files of one published evaluation data set, in hub layout and verified, and the items of its tasks.

    python -m pipeline.stages.benchdata --scale math --source gsm8k

The data set is one of `benchmarks` in config/sources.yaml: from the Hugging Face hub, on a machine with a network, or
from a folder of this machine that is laid out as the hub (`python -m pipeline.tasks.hub_layout` makes one from the data
sets' original files).

Out: files/, laid out as the repo; tasks/<task>/{train,test}.parquet for each task that asks about it, with the columns
question, answer, gold, shot (the answer as a worked example shows it) and doc (a digest of the whole row). A row whose
answer cannot be read keeps its place, so that others keep their worked examples, but has no gold: no stage asks it. The
record counts and names such rows (`without_answer`); if there are many, it is another data set than the one meant.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifact import sha256_file
from pipeline.errors import PipelineError
from pipeline.globs import find
from pipeline.registry import BenchmarkData
from pipeline.stage import Context, main
from pipeline.tasks import HUB, HubTask
from pipeline.tasks.mirror import FILES
from pipeline.tasks.task import Row

UNREAD, UNREAD_SHARE = 10, 0.01  # rows without a readable answer: more than both is an error
ITEMS = pa.schema([(name, pa.string()) for name in ("question", "answer", "gold", "shot", "doc")])


def fetch(name: str, data: BenchmarkData, folder: Path) -> tuple[Path, str]:
    """The folder that holds the data set's files, downloaded if need be, and the commit they are of ("local" for none).

    Raises:
        PipelineError: the hub cannot be reached, or has no such repo, revision or file.
    """
    if data.path is not None:
        return Path(data.path), "local"
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        commit = data.revision or HfApi().dataset_info(data.repo).sha
        # The hub's `*` crosses folders, and its `**/` needs one: so this may bring more than `gather` then takes.
        patterns = list(dict.fromkeys(p for glob in data.files for p in (glob, glob.replace("**/", ""))))
        found = snapshot_download(
            data.repo, repo_type="dataset", revision=commit, allow_patterns=patterns, local_dir=folder
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise PipelineError(
            f"benchmarks.{name}: cannot fetch {data.repo} from the Hugging Face hub: {error}; run this on a machine "
            f"with a network, or give `path` in config/sources.yaml"
        ) from None
    return Path(found), str(commit)


def gather(name: str, data: BenchmarkData, source: Path, out: Path) -> list[str]:
    """Copy the files the registry asks for, keeping their layout, and check their digests; returns their paths.

    Raises:
        PipelineError: a pattern without a file, a file with another digest, or a digest without a file.
    """
    paths: set[str] = set()
    for pattern in data.files:
        found = {path.relative_to(source).as_posix() for path in find(source, pattern)}
        if not found:
            raise PipelineError(f"benchmarks.{name}: no file {source / pattern}; correct `path` or `files`")
        paths |= found
    for path in sorted(paths):
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, out / path)
    for path, wanted in data.sha256.items():
        if path not in paths:
            raise PipelineError(f"benchmarks.{name}.sha256: '{path}' is not among `files`")
        digest = sha256_file(out / path)
        if digest != wanted:
            raise PipelineError(
                f"{source / path}: its SHA-256 is {digest}, not the one in config/sources.yaml ({wanted}); it is "
                f"another version of {data.repo}, or damaged"
            )
    return sorted(paths)


def doc_digest(row: Row) -> str:
    """Stands for a row of the data set: lm-eval keeps an item from being its own worked example by comparing rows."""
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_items(task: HubTask, files: Path, pattern: str, out: Path) -> tuple[int, list[str]]:
    """The items of one split of a task; returns their number, and the names of rows without a readable answer.

    Raises:
        PipelineError: a missing column, or too many such rows.
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
    return len(items), unread


def run(ctx: Context) -> dict[str, Any]:
    name = ctx.job.source
    assert name is not None
    data = ctx.dag.benchmarks[name]
    source, commit = fetch(name, data, ctx.state / "hub")
    files = ctx.out / FILES
    paths = gather(name, data, source, files)
    counts, without_answer = {}, {}
    for task in (one for one in HUB.values() if one.data == name):
        for split, pattern in (("train", task.train), ("test", task.test)):
            if pattern is not None and any(files.glob(pattern)):
                out = ctx.out / "tasks" / task.items / f"{split}.parquet"
                counts[f"{task.name}_{split}"], unread = write_items(task, files, pattern, out)
                if unread:
                    without_answer[f"{task.name}_{split}"] = {"count": len(unread), "rows": unread}
                    ctx.say(f"left out, no answer can be read: {'; '.join(unread)}")
    if data.revision is None and data.path is None:
        ctx.say(f"no revision is pinned; took the hub's newest, {commit}")
    ctx.say(f"{len(paths)} files; " + ", ".join(f"{split} {n}" for split, n in counts.items()))
    found = {"revision": commit, "files": len(paths), "items": counts}
    return found | ({"without_answer": without_answer} if without_answer else {})


if __name__ == "__main__":
    main("benchdata", run, __doc__)
