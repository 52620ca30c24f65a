"""`bundle` and `unbundle`: what a cluster without a network needs, as one tar file with a manifest of digests.

    python -m pipeline bundle --scale math --out math.tar
    python -m pipeline unbundle math.tar [--into FOLDER]

A bundle holds whole artifacts (by default those `snakemake fetch` makes), the files the registry's tokenizer names, the
configuration and the locks; the first member is the manifest. Unbundling checks each file against it, writes only files
it lists, never replaces a file by another, and may be repeated after a kill: an artifact's record is written behind its
files, so that half an artifact is none.
"""

import argparse
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.artifacts import store
from pipeline.artifacts.record import RECORD, RECORD_COPY, FileEntry, sha256_file
from pipeline.dag.dag import Dag
from pipeline.dag.stages import STAGES
from pipeline.dag.survey import survey
from pipeline.data.registry import FileTokenizer
from pipeline.errors import PipelineError
from pipeline.planning.words import size

MANIFEST = "manifest.json"
CHUNK = 1 << 22


class Manifest(BaseModel):
    """What a bundle holds: path relative to the repository's root, size and digest, in the order of the members."""

    model_config = ConfigDict(extra="forbid")
    schema_version: int = 1
    scale: str
    stages: list[str]
    files: list[FileEntry]


@dataclass
class _Hashing:
    """A file that knows the digest of what was read of it."""

    file: IO[bytes]

    def __post_init__(self) -> None:
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.digest.update(data)
        return data


# ---------------------------------------------------------------------------------------------------- pack


def _entry(path: Path, root: Path, sha256: str | None = None) -> FileEntry:
    name = Path(os.path.relpath(path, root)).as_posix()
    return FileEntry(path=name, bytes=path.stat().st_size, sha256=sha256 or sha256_file(path))


def contents(dag: Dag, stages: list[str], root: Path, config: Path, results: Path) -> list[FileEntry]:
    """The files of a bundle, each artifact's record behind its other files.

    Raises:
        PipelineError: an artifact that is not there, or was made with other settings or inputs.
    """
    named = dag.tokenizer.files if isinstance(dag.tokenizer, FileTokenizer) else []
    loose = [*sorted(config.rglob("*.yaml")), *sorted(config.rglob("*.tsv"))]
    loose += sorted((root / "workflow" / "envs").glob("*.lock"))
    loose += [root / path for path in named if not path.is_absolute() and (root / path).exists()]
    entries = [_entry(path, root) for path in loose]
    stale = survey(dag, results).stale
    for job in dag.jobs:
        if job.stage not in stages:
            continue
        folder = results / job.folder
        record = store.read_record(folder)
        if job in stale:
            raise PipelineError(
                f"{folder / RECORD}: made with other settings or inputs than the configuration asks for; "
                f"`snakemake --cores 2 {folder / RECORD}` makes it anew"
            )
        entries += [_entry(folder / entry.path, root, entry.sha256) for entry in record.outputs]
        entries += [_entry(folder / name, root) for name in (RECORD_COPY, RECORD) if (folder / name).exists()]
    return entries


def bundle(
    dag: Dag, out: Path, stages: list[str] | None = None, root: Path = Path(), config: Path = Path("config")
) -> Manifest:
    """Write the bundle of a scale; nothing is left at `out` if it fails.

    Args:
        root: the repository; what is packed lies below it.
    """
    stages = stages or [name for name, stage in STAGES.items() if stage.fetches]
    entries = contents(dag, stages, root, config, root / "results")
    outside = [entry.path for entry in entries if PurePosixPath(entry.path).parts[0] == ".."]
    if outside:
        raise PipelineError(f"{outside[0]}: is not below the repository's root, where bundles are unpacked")
    manifest = Manifest(scale=dag.name, stages=stages, files=entries)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    try:
        with tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as tar:
            text = manifest.model_dump_json(indent=1).encode()
            member = tarfile.TarInfo(MANIFEST)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
            for entry in entries:
                _add(tar, root / entry.path, entry)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return manifest


def _add(tar: tarfile.TarFile, path: Path, entry: FileEntry) -> None:
    member = tarfile.TarInfo(entry.path)
    member.size, member.mtime = entry.bytes, int(path.stat().st_mtime)
    with path.open("rb") as file:
        hashing = _Hashing(file)
        tar.addfile(member, hashing)
    if hashing.digest.hexdigest() != entry.sha256:
        raise PipelineError(
            f"{path}: its content is not what its record says; `snakemake fetch` after deleting the record"
        )


# ---------------------------------------------------------------------------------------------------- unpack


def _members(tar: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    try:
        yield from tar
    except (tarfile.TarError, EOFError, OSError) as error:
        raise PipelineError(f"{path}: truncated, or not a bundle ({error}); copy it again") from None


def _manifest(tar: tarfile.TarFile, path: Path) -> Manifest:
    first = tar.next()
    file = tar.extractfile(first) if first is not None and first.name == MANIFEST else None
    if file is None:
        raise PipelineError(f"{path}: not a bundle: it does not begin with {MANIFEST}")
    try:
        manifest = Manifest.model_validate_json(file.read())
    except ValidationError as error:
        raise PipelineError(f"{path}: {MANIFEST} is not a manifest ({error.error_count()} faults)") from None
    for entry in manifest.files:
        parts = PurePosixPath(entry.path).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise PipelineError(f"{path}: '{entry.path}' does not stay below the folder; nothing was written")
    return manifest


def unbundle(path: Path, into: Path = Path()) -> tuple[int, int]:
    """Lay out a bundle below `into`; returns the numbers of files written and of files that were there already.

    Raises:
        PipelineError: the bundle is damaged or would write outside `into`, or another file is where one belongs.
    """
    try:
        tar = tarfile.open(path, "r:")  # noqa: SIM115 (closed below; opening it has errors of its own)
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file") from None
    except tarfile.TarError as error:
        raise PipelineError(f"{path}: not a bundle ({error})") from None
    with tar:
        entries = {entry.path: entry for entry in _manifest(tar, path).files}
        there = {entry.path for entry in entries.values() if _is_there(into / entry.path, entry)}
        seen: set[str] = set()
        for member in _members(tar, path):
            if member.name == MANIFEST:
                continue
            listed = entries.get(member.name)
            if listed is None or member.name in seen:
                raise PipelineError(f"{path}: member '{member.name}' is not in its manifest, or is there twice")
            seen.add(member.name)
            if member.name not in there:
                _extract(tar, member, listed, into, path)
        if missing := set(entries) - seen:
            raise PipelineError(f"{path}: truncated: '{min(missing)}' is not in it; copy it again")
    return len(entries) - len(there), len(there)


def _is_there(path: Path, entry: FileEntry) -> bool:
    """Whether a file of a bundle is in its place already.

    Raises:
        PipelineError: another file is.
    """
    if not path.exists() and not path.is_symlink():
        return False
    same = path.is_file() and path.stat().st_size == entry.bytes and sha256_file(path) == entry.sha256
    if not same:
        raise PipelineError(f"{path}: exists and differs; nothing was written (move it away, or use --into)")
    return True


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, entry: FileEntry, into: Path, path: Path) -> None:
    try:
        tarfile.data_filter(member, os.devnull)  # by its name: folders of `into` may be links to other disks
    except tarfile.FilterError as error:
        raise PipelineError(f"{path}: {error}") from None
    file = tar.extractfile(member) if member.isreg() else None
    if file is None:
        raise PipelineError(f"{path}: member '{member.name}' is not a plain file")
    to = into / entry.path
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(f".{to.name}.part")
    hashing = _Hashing(file)
    try:
        with part.open("wb") as out:
            while data := hashing.read(CHUNK):
                out.write(data)
            out.flush()
            os.fsync(out.fileno())
        if hashing.digest.hexdigest() != entry.sha256:
            raise PipelineError(f"{path}: '{entry.path}' is damaged: its SHA-256 is not the manifest's; copy it again")
        os.utime(part, (member.mtime, member.mtime))
        part.rename(to)
    except tarfile.ReadError as error:
        raise PipelineError(f"{path}: truncated in '{entry.path}' ({error}); copy it again") from None
    finally:
        part.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------- command lines


def _bundle(args: argparse.Namespace) -> None:
    dag = Dag.load(args.scale, args.config)
    manifest = bundle(dag, args.out, args.stages, config=Path(args.config).parent)
    total = size(sum(entry.bytes for entry in manifest.files))
    print(f"{args.out}: {len(manifest.files)} files, {total} ({', '.join(manifest.stages)})")


def _unbundle(args: argparse.Namespace) -> None:
    written, there = unbundle(args.file, args.into)
    print(f"{args.into}: {written} files written, {there} were there already")


def add_parser(subparsers: Any) -> None:
    """Add the verbs `bundle` and `unbundle`; each sets `func`."""
    pack = subparsers.add_parser("bundle", help="pack what a cluster without a network needs")
    pack.add_argument("--config", default="config/grid.yaml", help="the grid file (default: %(default)s)")
    pack.add_argument("--scale", help="a scale of the grid file (default: the file's own)")
    pack.add_argument("--out", required=True, type=Path, help="the tar file to write")
    pack.add_argument("--stages", nargs="+", choices=list(STAGES), help="artifacts to pack (default: what fetch makes)")
    pack.set_defaults(func=_bundle)
    unpack = subparsers.add_parser("unbundle", help="verify a bundle and lay it out")
    unpack.add_argument("file", type=Path, help="the tar file")
    unpack.add_argument("--into", type=Path, default=Path(), help="the repository's root (default: this folder)")
    unpack.set_defaults(func=_unbundle)
