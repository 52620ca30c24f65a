"""Files by plain HTTP: a part is kept beside the file, continued after a kill, and moved when its digest is right.

`http_get` of huggingface_hub can continue at a byte as well, but it is no part of that library's public interface, and
it gives up at a connection that is reset and at an answer of 5xx, which a download of a terabyte meets now and then.
"""

import hashlib
import os
import time
from pathlib import Path

from pipeline.artifacts.record import sha256_file
from pipeline.artifacts.store import locked
from pipeline.errors import PipelineError

ATTEMPTS = 5
WAIT_S = 2  # before the second attempt; doubles


def git_blob(path: Path) -> str:
    """Git's name of a file's content, SHA-1 of its size and bytes: the hub's digest of a small file."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def download(
    url: str,
    to: Path,
    sha256: str | None = None,
    blob: str | None = None,
    size: int | None = None,
    token: bool = False,
) -> None:
    """Have the file of `url` at `to`, continuing what an earlier process left of it.

    Args:
        sha256, blob, size: what the file must have (`blob`: git's name of it; `size`: bytes), where it is known. A part
            that turns out to be another file is deleted.
        token: send the user's Hugging Face token, if there is one.

    Raises:
        PipelineError: it cannot be downloaded, or is another file than expected; it is named.
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
                        f"{url}: cannot be downloaded: {error}; run the same command to continue"
                    ) from None
                print(f"{url}: {error}; trying again", flush=True)
                time.sleep(WAIT_S * 2**attempt)
        checks = (
            ("size in bytes", size, lambda path: path.stat().st_size),
            ("SHA-256", sha256, sha256_file),
            ("git digest", blob, git_blob),
        )
        for what, expected, measure in checks:
            if expected is not None and (actual := measure(part)) != expected:
                part.unlink()
                raise PipelineError(
                    f"{to.name}: {what} of what came from {url} is {actual}, not {expected}; the file is thrown away, "
                    f"and the same command fetches it again"
                )
        part.replace(to)


def _transient(error: OSError) -> bool:
    """Whether the same request may succeed later: anything but an answer that says whose fault it is."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is None or status == 429 or status >= 500


def _continue(url: str, part: Path, token: bool) -> None:
    """Append to `part` what is missing of it."""
    import requests

    headers: dict[str, str] = {"Accept-Encoding": "identity"}  # a range of a compressed answer is of no use
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
        # 200 to a request for a range: the server sends the whole file, from its beginning.
        with part.open("ab" if answer.status_code == 206 else "wb") as file:
            for chunk in answer.iter_content(1 << 16):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        expected = answer.headers.get("Content-Length")
        came = part.stat().st_size - (have if answer.status_code == 206 else 0)
        if expected is not None and came != int(expected):
            raise OSError(f"the connection ended after {came} of {expected} bytes")
