"""What the machine does to a stage, said so that a user knows what to do: full disks, lost processes, no memory."""

import errno
import os
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.errors import PipelineError

SAME = "nothing published was touched; the same command continues"
FULL = (errno.ENOSPC, errno.EDQUOT)
TIGHT_MB = 64  # less than any checkpoint worth saving
UNQUOTABLE = ":*?[]{}\\"
DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)


def check_name(folder: Path) -> None:
    """Look whether all stages can work in a folder of this name.

    Raises:
        PipelineError: its path has a character that an engine or the shell gives a meaning and lets nobody quote.
    """
    path = str(folder.resolve())
    if unusable := [
        character for character in path if character in UNQUOTABLE or unicodedata.category(character) in ("Cc", "Cs")
    ]:
        raise PipelineError(
            f"{path}: its name has {unusable[0]!r}, which search paths (':'), file patterns ('*?[]'), "
            f"Snakemake ('{{}}') or Hydra ('\\') take for something else; move the project to a folder without"
        )


def check_folders(results: Path, folders: Iterable[Path]) -> None:
    """Look whether all of the folders, relative to `results`, can be made and written; each may be a link or a mount.

    Raises:
        PipelineError: one cannot, with the way out.
    """
    inner = set(folders)
    inner |= {parent for folder in inner for parent in folder.parents}
    for folder in sorted(results / part for part in inner):
        if folder.is_symlink() and not folder.exists():
            raise PipelineError(f"{folder}: a link to {folder.readlink()}, which is not there; mount it or remove it")
        if folder.exists() and not folder.is_dir():
            raise PipelineError(f"{folder}: not a folder; move it away")
        if folder.exists() and not os.access(folder, os.W_OK):
            raise PipelineError(f"{folder}: cannot be written; make it writable for this user, or its disk")


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those behind it, the outermost first."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        yield cause
        cause = cause.__cause__ or cause.__context__


def explain(error: BaseException, results: Path) -> str | None:
    """One line for a fault of the machine: what happened, where, and the way out. None for anything else.

    Libraries wrap what the kernel says in errors of their own, so that the chain and its text are searched.
    """
    for cause in chain(error):
        number, text, name = getattr(cause, "errno", None), str(cause), type(cause).__name__
        where = getattr(cause, "filename", None) or results
        free = shutil.disk_usage(results).free >> 20 if results.exists() else 0
        torn = "inline_container" in text and free < TIGHT_MB  # PyTorch's writer says nothing of the disk
        if torn or number in FULL or "No space left on device" in text or "Disk quota exceeded" in text:
            return f"{where}: no space left on the disk ({free:,} MiB free below {results}): free some; {SAME}"
        if number in DENIED or "Read-only file system" in text:
            return f"{where}: cannot be written ({text}): make {results} writable for this user; {SAME}"
        if name == "EngineDeadError" or "EngineCore" in text or "Engine core initialization failed" in text:
            return (
                "vLLM's engine process is gone; most often the system killed it for its memory: lower cache_mb or "
                f"raise mem_mb in the profile, and see the log above; {SAME}"
            )
        if name == "OutOfMemoryError":
            return f"the GPU's memory is full: use more ranks, or lower cache_mb in the profile; {SAME} ({text})"
        if isinstance(cause, MemoryError):
            return f"the machine's memory is full: run fewer jobs at once (mem_mb in the profile); {SAME}"
    return None
