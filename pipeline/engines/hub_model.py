"""One model of the Hugging Face hub at one commit: its files, their digests, and a download that continues."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.artifact import sha256_file, write_atomic
from pipeline.errors import PipelineError


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """The client's errors as one line: no such repository or revision, no access, no network."""
    import httpx

    try:
        yield
    except (OSError, ValueError, httpx.HTTPError) as error:  # its own errors are OSErrors or ValueErrors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PipelineError(
            f"{what}: the hub does not give it: {reason}. A node without network can adopt a folder fetched elsewhere "
            f"(`adopt: {{path: ...}}`); the same command continues with the files that are missing"
        ) from None


def git_blob(path: Path) -> str:
    """Git's name of a file's content, which is the hub's digest of a small file."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


class HubModel:
    """A model repository. A branch is resolved to a commit once, and kept to when a killed download continues."""

    def __init__(self, repo: str, revision: str, state: Path) -> None:
        from huggingface_hub import HfApi

        self.repo, self._folder = repo, state / "hub"
        commit = state / "commit"
        if not commit.exists():
            with _explained(f"{repo}@{revision}"):
                write_atomic(commit, str(HfApi().repo_info(repo, revision=revision).sha))
        self.commit = commit.read_text()
        self.name = f"{repo}@{self.commit}"

    @cached_property
    def _files(self) -> dict[str, Any]:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        with _explained(self.name):
            tree = list(HfApi().list_repo_tree(self.repo, revision=self.commit))
        return {item.path: item for item in tree if isinstance(item, RepoFile)}

    @property
    def names(self) -> list[str]:
        """Its files at the top level."""
        return list(self._files)

    def take(self, names: list[str], out: Path) -> None:
        """Download files that are not here yet, compare them with the hub's digests, and link them into `out`.

        Raises:
            PipelineError: not to be had, or not the bytes that the hub says it has.
        """
        from huggingface_hub import snapshot_download

        with _explained(self.name):
            snapshot_download(self.repo, revision=self.commit, local_dir=self._folder, allow_patterns=names)
        for name in names:
            path, known = self._folder / name, self._files[name]
            wanted, found = (known.lfs.sha256, sha256_file(path)) if known.lfs else (known.blob_id, git_blob(path))
            if wanted != found:
                path.unlink()
                raise PipelineError(
                    f"{self.name}: {name}: digest {found} where the hub says {wanted}; the file is thrown away, and "
                    f"the same command fetches it again"
                )
            os.link(path, out / name)
