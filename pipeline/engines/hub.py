"""Files from outside: what a data set of the Hugging Face hub consists of, and downloads that resume.

`huggingface_hub` itself does not continue the download of a process that was killed (it deletes the part), so files
come by plain HTTP: a part is kept beside the file, continued, and moved to its place when its digest is right.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifact import locked, sha256_file
from pipeline.errors import PipelineError
from pipeline.globs import for_training
from pipeline.registry import HuggingFaceDataset

ATTEMPTS = 5
WAIT_S = 2  # before the second attempt; doubles


@dataclass(frozen=True)
class RemoteFile:
    """A file of a data set: its path there, where it comes from, and its SHA-256 where the hub knows one."""

    path: str
    url: str
    bytes: int
    sha256: str | None


def data_files(source: HuggingFaceDataset, revision: str) -> list[str]:
    """Paths of the files that the data set's card gives for the configuration and split of `source`."""
    from datasets import load_dataset_builder

    builder = load_dataset_builder(source.repo, source.config, revision=revision)
    found = builder.config.data_files or {}
    if source.split not in found:
        raise ValueError(f"there is no split '{source.split}'; there are: {', '.join(map(str, found)) or 'none'}")
    prefix = f"datasets/{source.repo}@{revision}/"
    return [str(file).partition(prefix)[2] for file in found[source.split]]


def list_files(name: str, source: HuggingFaceDataset, revision: str | None) -> tuple[str, list[RemoteFile], list[str]]:
    """The commit, the files that `source` stands for, and the paths left out as held out (see `globs`), both sorted.

    Args:
        revision: the commit to take; None asks the hub for the newest.
    """
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.hf_api import RepoFile

    api, repo = HfApi(), source.repo
    assert repo is not None
    try:
        commit = revision or str(api.dataset_info(repo).sha)
        listed: dict[str, Any] = {
            file.path: file
            for file in api.list_repo_tree(repo, recursive=True, revision=commit, repo_type="dataset")
            if isinstance(file, RepoFile)
        }
        of_split = [] if source.files else data_files(source, commit)
    except Exception as error:  # of the hub's client, of datasets and of httpx, each with its own family
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PipelineError(
            f"source '{name}': {repo} at {revision or 'its newest revision'} cannot be listed: {reason}; check "
            "its entry in config/sources.yaml and the network (HF_TOKEN for a gated data set)"
        ) from None
    where = f"source '{name}': {repo} at {commit}"
    wanted, left_out = for_training(listed, source.files, where) if source.files else (sorted(of_split), [])
    if strange := [path for path in wanted if path not in listed]:
        raise PipelineError(f"{where}: its card names {strange[0] or 'a file'} outside of it; give `files`")
    files = []
    for path in wanted:
        file = listed[path]
        url = hf_hub_url(repo, path, repo_type="dataset", revision=commit)
        files.append(RemoteFile(path, url, file.size, file.lfs.sha256 if file.lfs else None))
    return commit, files, left_out


def download(url: str, to: Path, sha256: str | None = None, size: int | None = None, token: bool = False) -> None:
    """Have the file of `url` at `to`, continuing what an earlier process left of it.

    Args:
        sha256, size: what the file must have; a part that turns out to be another file is deleted.
        token: send the user's Hugging Face token, if there is one.

    Raises:
        PipelineError: it cannot be had, or is another file than expected; it is named.
    """
    with locked(to.with_name(f".{to.name}.lock")):
        if to.exists():
            return
        part = to.with_name(f"{to.name}.part")
        for attempt in range(ATTEMPTS):
            try:
                _continue(url, part, token)
                break
            except OSError as error:
                if attempt == ATTEMPTS - 1 or not _transient(error):
                    raise PipelineError(
                        f"{url}: cannot be downloaded: {error}; run the same command to go on"
                    ) from None
                print(f"{url}: {error}; trying again", flush=True)
                time.sleep(WAIT_S * 2**attempt)
        found = part.stat().st_size
        if size is not None and found != size:
            part.unlink()
            raise PipelineError(f"{to.name}: {found} bytes came from {url} where {size} were expected; run it again")
        if sha256 is not None and (digest := sha256_file(part)) != sha256:
            part.unlink()
            raise PipelineError(f"{to.name}: SHA-256 of what came from {url} is {digest}, not {sha256}")
        part.replace(to)


def _transient(error: OSError) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is None or status == 429 or status >= 500


def _continue(url: str, part: Path, token: bool) -> None:
    """Append to `part` what is missing of it."""
    import requests

    headers: dict[str, str] = {"Accept-Encoding": "identity"}
    if token:
        from huggingface_hub.utils import build_hf_headers

        headers |= build_hf_headers()
    have = part.stat().st_size if part.exists() else 0
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(url, headers=headers, stream=True, timeout=60) as answer:
        if have and answer.status_code == 416:  # nothing is missing
            return
        answer.raise_for_status()
        with part.open("ab" if answer.status_code == 206 else "wb") as file:
            for chunk in answer.iter_content(1 << 16):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        expected = answer.headers.get("Content-Length")
        came = part.stat().st_size - (have if answer.status_code == 206 else 0)
        if expected is not None and came != int(expected):
            raise OSError(f"the connection ended after {came} of {expected} bytes")
