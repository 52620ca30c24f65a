"""One repository of the Hugging Face hub at one commit: its files, their digests, and downloads that resume.

Data sets, evaluation data and released checkpoints all come this way. `huggingface_hub` lists the files and says where
they lie. Its own downloads (`hf_hub_download`, `snapshot_download`) are not used: as of 1.33 they write to a temporary
file of a random name, so that a killed download of gigabytes starts again (huggingface_hub pull request 4228), and they
compare sizes, but no digests. Ours (download.py) continues at the byte, and throws away files that are not the hub's.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pipeline.artifacts.store import write_atomic
from pipeline.data.download import download
from pipeline.errors import PipelineError

COMMIT = "commit"  # file of the state folder: what a branch stood at when it was first asked for


@dataclass(frozen=True)
class HubFile:
    """A file of a repository: its path there, where it comes from, and its digest.

    Attributes:
        sha256: of its bytes, where the hub knows it: of large files.
        blob: git's name of it, for all others.
    """

    path: str
    url: str
    bytes: int
    sha256: str | None
    blob: str | None


@contextmanager
def explained(what: str, way_out: str) -> Iterator[None]:
    """The client's errors as one line: an unknown repository or revision, no access, no network."""
    try:
        yield
    except Exception as error:  # of the client, of httpx and of datasets, each with its own family
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PipelineError(f"{what}: the hub does not give it: {reason}; {way_out}") from None


class Repository:
    """A repository at a commit. A branch is resolved once, and kept to when a killed download continues.

    Attributes:
        commit: the commit, 40 digits.
        name: how messages call it: who asks for it, and "org/data@0123abc...".
        folder: whole and verified files under their paths, and nothing else.
    """

    def __init__(
        self,
        repo: str,
        revision: str | None,
        kind: Literal["dataset", "model"],
        state: Path,
        *,
        way_out: str,
        asker: str | None = None,
    ) -> None:
        """Find the commit.

        Args:
            revision: a commit or a branch; None for the newest commit of the main branch.
            state: folder that survives a kill: holds the commit, and the files under their paths.
            way_out: the end of messages: what to do where the hub does not give it.
            asker: the beginning of messages, as "source 'wiki'".

        Raises:
            PipelineError: the repository or the revision does not exist, or there is no network.
        """
        self.repo, self.folder, self._incoming = repo, state / "files", state / "incoming"
        self._kind, self._way_out, self._asker = kind, way_out, f"{asker}: " if asker else ""
        pinned = revision is not None and re.fullmatch("[0-9a-f]{40}", revision)
        self.commit = str(revision) if pinned else self._resolve(revision, state)
        self.name = f"{self._asker}{repo}@{self.commit}"

    def _resolve(self, revision: str | None, state: Path) -> str:
        from huggingface_hub import HfApi

        resolved = state / COMMIT
        if not resolved.exists():
            with explained(f"{self._asker}{self.repo}@{revision or 'its newest revision'}", self._way_out):
                commit = str(HfApi().repo_info(self.repo, revision=revision, repo_type=self._kind).sha)
            state.mkdir(parents=True, exist_ok=True)
            write_atomic(resolved, commit)
        return resolved.read_text()

    @cached_property
    def files(self) -> dict[str, HubFile]:
        """All its files, by path.

        Raises:
            PipelineError: the commit does not exist, or there is no network.
        """
        from huggingface_hub import HfApi, hf_hub_url
        from huggingface_hub.hf_api import RepoFile

        with explained(self.name, self._way_out):
            tree = HfApi().list_repo_tree(self.repo, recursive=True, revision=self.commit, repo_type=self._kind)
            entries = [entry for entry in tree if isinstance(entry, RepoFile)]
        listed = {}
        for entry in entries:
            url = hf_hub_url(self.repo, entry.path, repo_type=self._kind, revision=self.commit)
            lfs = entry.lfs
            listed[entry.path] = HubFile(
                entry.path, url, entry.size, lfs.sha256 if lfs else None, None if lfs else entry.blob_id
            )
        return listed

    def fetch(self, path: str, sha256: str | None = None) -> Path:
        """Have a file on this machine, continuing what an earlier process left of it.

        Args:
            sha256: what the registry says of it, if it does.

        Raises:
            PipelineError: it cannot be had, or it is not the bytes that the hub or the registry says it is.
        """
        to, incoming = self.folder / path, self._incoming / path
        if not to.exists():
            file = self.files[path]
            for folder in (to.parent, incoming.parent):
                folder.mkdir(parents=True, exist_ok=True)
            download(file.url, incoming, sha256 or file.sha256, file.blob, file.bytes, token=True)
            incoming.replace(to)
        return to

    def drop(self, path: str) -> None:
        """Delete a downloaded file that is needed no more."""
        (self.folder / path).unlink(missing_ok=True)
