"""Records, fingerprints, manifests, atomic publication and the lock: what makes an output an artifact.

An artifact is a folder with a `record.json`, written last. Snakemake knows only the record; everything else is found
through it. A stage works in a state folder that Snakemake does not know (Snakemake deletes outputs of failed jobs).
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import PipelineError

RECORD = "record.json"
RECORD_COPY = ".record.json"  # Snakemake deletes declared outputs of jobs it thinks incomplete; this one it cannot see
INCOMING = ".new.tmp"  # folder inside an artifact's: what is about to be published
FULL_CHECK_BYTES = 256 << 20  # inputs up to this size are re-hashed when read; larger ones only measured


def canonical(value: Any) -> str:
    """`value` as the one JSON text that stands for it; refuses what has no such text.

    Raises:
        TypeError: a value that is not a mapping with text keys, a list, text, number, boolean or None; or a NaN. A
            lenient encoder would let such a value change the fingerprint silently from run to run.
    """

    def check(item: Any, path: str) -> None:
        if isinstance(item, dict):
            for key, inner in item.items():
                if not isinstance(key, str):
                    raise TypeError(f"{path}: key {key!r} is not text")
                check(inner, f"{path}.{key}")
        elif isinstance(item, list):
            for i, inner in enumerate(item):
                check(inner, f"{path}.{i}")
        elif isinstance(item, float) and not math.isfinite(item):
            raise TypeError(f"{path}: {item} has no canonical form")
        elif not (item is None or isinstance(item, str | int | float | bool)):
            raise TypeError(f"{path}: {type(item).__name__} has no canonical form")

    check(value, "settings")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(identity: dict[str, Any]) -> str:
    """16 hex digits of the SHA-256 of an identity's canonical form."""
    return hashlib.sha256(canonical(identity).encode()).hexdigest()[:16]


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileEntry(BaseModel):
    """One file of an artifact: path relative to its folder, size, digest."""

    model_config = ConfigDict(extra="forbid")
    path: str
    bytes: int
    sha256: str


class InputEntry(BaseModel):
    """One upstream artifact: its role, where it lay, its identity and the digest of its content (`Record.content`)."""

    model_config = ConfigDict(extra="forbid")
    name: str
    path: str
    fingerprint: str
    content: str


class Acceptance(BaseModel):
    """That someone kept an artifact on purpose although its identity had changed (`python -m pipeline accept`)."""

    model_config = ConfigDict(extra="forbid")
    fingerprint: str  # the identity it was made with
    changes: list[str]
    reason: str
    when: str


class Record(BaseModel):
    """What a stage says about what it made. Downstream code reads this, never logs.

    `outputs` and `metrics` are the artifact's content: on a CPU they follow from its identity alone, byte for byte.
    What its `Dag.screens` found is in `screening`. What was measured while making it is in `timing`, `wall_s`, `cpu_s`
    and `peak_rss_mb`; the last two are of the stage's process and its finished children. Ray's processes, in which GRPO
    runs, are not among them.
    """

    model_config = ConfigDict(extra="forbid")
    schema_version: Literal[2] = 2
    stage: str
    stage_version: int
    scale: str
    point: str | None
    variant: str | None
    source: str | None
    fingerprint: str
    settings: dict[str, Any]
    inputs: list[InputEntry]
    outputs: list[FileEntry]
    metrics: dict[str, Any]
    screening: dict[str, Any] = {}
    timing: dict[str, float] = {}
    versions: dict[str, str]
    commit: str | None
    hardware: dict[str, Any]
    execution: dict[str, Any]
    started: str
    wall_s: float
    cpu_s: float
    peak_rss_mb: float
    accepted: list[Acceptance] = []
    digest: str = ""  # SHA-256 of this record's text with this field empty

    @property
    def content(self) -> str:
        """SHA-256 of outputs and metrics: what whoever reads the artifact depends on."""
        made = {"outputs": [entry.model_dump() for entry in self.outputs], "metrics": self.metrics}
        return hashlib.sha256(canonical(made).encode()).hexdigest()

    def text(self) -> str:
        """The one text of this record, its digest filled in."""
        without = None if self.screening else {"screening"}  # as in records that are older than this field
        plain = self.model_copy(update={"digest": ""}).model_dump_json(indent=2, exclude=without)
        sealed = self.model_copy(update={"digest": hashlib.sha256(plain.encode()).hexdigest()})
        return sealed.model_dump_json(indent=2, exclude=without) + "\n"

    @classmethod
    def parse(cls, text: str) -> "Record":
        """A record from its text.

        Raises:
            ValueError: not a record, or not byte for byte the text that was written.
        """
        record = cls.model_validate_json(text)
        if record.text() != text:
            raise ValueError("its text is not what was written")
        return record


def manifest(folder: Path) -> list[FileEntry]:
    """Every file below `folder` but its record, sorted by path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (RECORD, RECORD_COPY))
    return [
        FileEntry(path=p.relative_to(folder).as_posix(), bytes=p.stat().st_size, sha256=sha256_file(p)) for p in files
    ]


def read_record(folder: Path) -> Record:
    """The record of an artifact.

    Raises:
        PipelineError: there is none, or it is not a record.
    """
    path = folder / RECORD
    if not path.exists() and (folder / RECORD_COPY).exists():
        path = folder / RECORD_COPY  # Snakemake takes a record away while another launch looks at its job
    try:
        return Record.parse(path.read_text())
    except FileNotFoundError:
        raise PipelineError(f"{path}: not there yet; `snakemake --cores 2 {path}` makes it") from None
    except ValueError as error:
        what = f"{error.error_count()} faults" if isinstance(error, ValidationError) else str(error)
        raise PipelineError(f"{path}: not a whole record ({what}); {remake(folder)}") from None


def remake(folder: Path) -> str:
    """The way out of a damaged artifact, for the end of a message."""
    return f"`python -m pipeline verify {folder}` sets it aside, and the next run makes it anew"


def check_files(folder: Path, record: Record) -> None:
    """Compare an artifact's files with its record before they are used.

    Sizes always; digests of files up to `FULL_CHECK_BYTES`.

    Raises:
        PipelineError: a missing, truncated or changed file, named, with the way out.
    """
    for entry in record.outputs:
        path = folder / entry.path
        if not path.is_file():
            raise PipelineError(f"{path}: missing; {remake(folder)}")
        size = path.stat().st_size
        if size != entry.bytes:
            raise PipelineError(f"{path}: {size} bytes where {entry.bytes} were published; {remake(folder)}")
        if size <= FULL_CHECK_BYTES and sha256_file(path) != entry.sha256:
            raise PipelineError(f"{path}: its content is not what was published; {remake(folder)}")


def fsync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder` to disk."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _published(folder: Path) -> set[str]:
    """Top-level names of the files an earlier record of the folder lists."""
    for name in (RECORD, RECORD_COPY):
        try:
            record = Record.parse((folder / name).read_text())
        except (FileNotFoundError, ValueError):
            continue
        return {Path(entry.path).parts[0] for entry in record.outputs}
    return set()


def _bring(made: Path, folder: Path) -> Path:
    """Move `made` into `folder` as `INCOMING`, and flush it. From another file system it is copied.

    A scale's or a point's folder may be a link or a mount, so that the state folder is on another file system.
    """
    incoming = folder / INCOMING
    shutil.rmtree(incoming, ignore_errors=True)  # of a publication that was killed
    try:
        made.replace(incoming)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        try:
            shutil.copytree(made, incoming)
        except BaseException:
            shutil.rmtree(incoming, ignore_errors=True)  # a full disk should not stay so
            raise
    fsync_tree(incoming)
    return incoming


def publish(made: Path, folder: Path, record: Record) -> None:
    """Move the files of `made` into `folder`, replacing what was there, and write the record last.

    Killed at any moment, either the old record is gone and the stage runs again, or the new one is there and complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = _bring(made, folder)
    before = _published(folder)
    (folder / RECORD).unlink(missing_ok=True)
    (folder / RECORD_COPY).unlink(missing_ok=True)
    for name in before | {entry.name for entry in made.iterdir()}:  # never a file that no record ever listed
        path = folder / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    for entry in made.iterdir():
        entry.replace(folder / entry.name)
    made.rmdir()
    for torn in folder.glob(".*.tmp"):  # of a write_atomic that was killed
        torn.unlink()
    fsync_tree(folder)
    write_record(folder, record)


def write_record(folder: Path, record: Record) -> None:
    """Write both copies of a record, the one Snakemake knows last."""
    text = record.text()
    write_atomic(folder / RECORD_COPY, text)
    write_atomic(folder / RECORD, text)


def restore(folder: Path, wanted: str, contents: dict[str, str]) -> Record | None:
    """Put back the record of an artifact that is whole and is the one wanted, if there is one.

    Snakemake deletes the record of a job whose end it did not see, although the job may have finished as an orphan.

    Args:
        wanted: the fingerprint it must have.
        contents: the content its inputs have now, by role; what was made from other content is not wanted.
    """
    try:
        text = (folder / RECORD_COPY).read_text()
        record = Record.parse(text)
        if record.fingerprint != wanted or {entry.name: entry.content for entry in record.inputs} != contents:
            return None
        check_files(folder, record)
    except (FileNotFoundError, ValueError, PipelineError):
        return None
    path = folder / RECORD
    if not path.exists() or path.read_text() != text:
        write_atomic(path, text)
    return record


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock on `path`."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the kernel's lock on `path`; wait for another holder. A dead process's lock is gone by itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{path}: another process works on this; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
