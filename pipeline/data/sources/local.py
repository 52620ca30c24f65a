"""Files of this machine: text, JSON lines or Parquet."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from pipeline.artifacts.record import sha256_file
from pipeline.config.globs import LocalGlob, find, held_out
from pipeline.data.sources.base import Part, Reading
from pipeline.data.sources.text import Text
from pipeline.errors import PipelineError


class LocalFiles(Text):
    """Text files, JSON lines or Parquet on this machine."""

    EXAMPLE: ClassVar = {"kind": "local", "path": "data/*.txt", "licence": "MIT", "sha256": {"a.txt": "0" * 64}}

    kind: Literal["local"]
    path: LocalGlob = Field(
        description="a file or glob (`**` crosses folders); .txt (a document a file), .jsonl or .json (lines), .parquet"
    )

    def origin(self) -> str:
        return f"files {self.path}"

    def open(self, name: str, state: Path) -> Reading:
        """The files of the glob but for held-out ones (see `globs`), checked against the digests of the registry."""
        matching = find(Path(), self.path)
        paths = [path for path in matching if not held_out(str(path), self.path)]
        left_out = [str(path) for path in matching if held_out(str(path), self.path)]
        if not paths:
            why = f"no such file but {left_out[0]}, held out by its name" if left_out else "no such file"
            if Path(self.path).is_dir():
                why = "a folder; write it with /**/*.jsonl for all such files in it"
            raise PipelineError(f"{self.path}: {why}; correct `path` in config/sources.yaml")

        def checked(number: int) -> Path:
            path = paths[number]
            expected = self.digest(str(path))
            if expected and sha256_file(path) != expected:
                raise PipelineError(f"{path}: its SHA-256 is not the one in config/sources.yaml; fetch the file again")
            return path

        # Reading all files to find out whether they are those of an earlier run would cost as much as starting again.
        parts = [Part(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        return replace(self.read(parts, checked), left_out=left_out)
