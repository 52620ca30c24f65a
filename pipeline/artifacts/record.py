"""Records and fingerprints: what was made, from what, and what identifies it.

An artifact is a folder with a `record.json`, written last. Snakemake knows only the record; everything else is found
through it.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

RECORD = "record.json"
RECORD_COPY = ".record.json"  # Snakemake deletes declared outputs of jobs it thinks incomplete; this one it cannot see


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
    and `peak_rss_mb`; the last two are of the stage's process and of those it started (pipeline/runtime/usage.py).
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
        content = {"outputs": [entry.model_dump() for entry in self.outputs], "metrics": self.metrics}
        return hashlib.sha256(canonical(content).encode()).hexdigest()

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
