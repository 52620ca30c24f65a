"""Artifacts on disk: atomic publication, checks, and the lock.

A stage works in a state folder that Snakemake does not know (Snakemake deletes outputs of failed jobs).
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from pipeline.artifacts.record import RECORD, RECORD_COPY, Record, sha256_file
from pipeline.errors import PipelineError

INCOMING = ".new.tmp"  # folder inside an artifact's: what is about to be published
FULL_CHECK_BYTES = 256 << 20  # inputs up to this size are re-hashed when read; larger ones only measured


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


def restore(folder: Path, expected_fingerprint: str, contents: dict[str, str]) -> Record | None:
    """Put back the record of an artifact that is whole and is the expected one, if there is one.

    Snakemake deletes the record of a job whose end it did not see, although the job may have finished as an orphan.

    Args:
        expected_fingerprint: the one it must have.
        contents: the content its inputs have now, by role; what was made from other content is left alone.
    """
    try:
        text = (folder / RECORD_COPY).read_text()
        record = Record.parse(text)
        if (
            record.fingerprint != expected_fingerprint
            or {entry.name: entry.content for entry in record.inputs} != contents
        ):
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


def link(path: Path, to: Path) -> None:
    """Have a finished file of a state folder in an artifact too, without a second copy where the file system can."""
    try:
        os.link(path, to)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, to)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the kernel's lock on `path`; wait for another holder. A dead process's lock is gone by itself.

    The package `filelock` takes the same lock, but polls for it, and cannot tell whether another process holds it
    (`is_locked`) without taking it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{path}: another process works on this; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
