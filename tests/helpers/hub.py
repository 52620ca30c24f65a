"""A stand-in for the Hugging Face hub on this machine: data sets at one revision, served as `huggingface_hub` asks."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What is served and what was asked.

    Attributes:
        files: path -> content, of the one data set `repo`.
        plain: path -> content, served at `/plain/<path>`.
        cut: path -> number of bytes after which the connection is closed, once.
        small: paths whose digest the hub gives as git's name only, as it does where files are not in LFS.
        listings: how often the commit or the files were asked for.
        asked: (path, Range header) of each download.
    """

    repo: str = "someone/texts"
    files: dict[str, bytes] = field(default_factory=dict)
    plain: dict[str, bytes] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    small: set[str] = field(default_factory=set)
    listings: int = 0
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""

    def entries(self) -> list[dict[str, object]]:
        entries = []
        for path, data in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry = {"type": "file", "path": path, "size": len(data), "oid": blob}
            lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            entries.append(entry if path in self.small else entry | {"lfs": lfs})
        return entries


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def _json(self, value: object, status: int = 200) -> None:
        self._bytes(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def _bytes(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None, cut: int = 0) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data)), "X-Repo-Commit": COMMIT} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:cut] if cut else data)
        if cut:
            self.wfile.flush()
            self.close_connection = True

    def _file(self, path: str, data: bytes | None) -> None:
        if data is None:
            return self._json({"error": "Entry not found"}, 404)
        etag = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if self.command == "HEAD":
            return self._bytes(data, 200, etag)
        self.hub.asked.append((path, wanted))
        first = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        if first >= len(data) and wanted:
            return self._bytes(b"", 416)
        return self._bytes(data[first:], 206 if wanted else 200, etag, self.hub.cut.pop(path, 0))

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api, resolve = f"/api/datasets/{self.hub.repo}", f"/datasets/{self.hub.repo}/resolve/"
        if path.startswith("/plain/"):
            name = path.removeprefix("/plain/")
            self._file(name, self.hub.plain.get(name))
        elif path.startswith(resolve):
            revision, _, name = path.removeprefix(resolve).partition("/")
            self._file(name, self.hub.files.get(name) if revision in (COMMIT, "main") else None)
        elif path in (api, f"{api}/revision/{COMMIT}", f"{api}/revision/main"):
            self.hub.listings += 1
            siblings = [{"rfilename": name} for name in self.hub.files]
            self._json({"id": self.hub.repo, "sha": COMMIT, "private": False, "siblings": siblings, "tags": []})
        elif path.startswith(f"{api}/tree/{COMMIT}"):
            self.hub.listings += 1
            self._tree(path.removeprefix(f"{api}/tree/{COMMIT}").strip("/"), "recursive=true" in self.path.lower())
        else:
            self._json({"error": "Repository not found"}, 404)

    do_HEAD = do_GET

    def _tree(self, folder: str, recursive: bool) -> None:
        found: dict[str, dict[str, object]] = {}
        for entry in self.hub.entries():
            path = PurePosixPath(str(entry["path"]))
            for inner in (path, *path.parents):
                if inner.is_relative_to(folder) and (recursive or inner.parent == PurePosixPath(folder)):
                    directory = {"type": "directory", "path": str(inner), "oid": "0" * 40}
                    found.setdefault(str(inner), entry if inner == path else directory)
        found.pop(".", None)
        found.pop(folder, None)
        self._json(list(found.values())) if found else self._json({"error": "Entry not found"}, 404)

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        names = set(re.findall(r"paths=([^&]+)", asked)) or set(json.loads(asked or "{}").get("paths", []))
        self._json([entry for entry in self.hub.entries() if entry["path"] in {unquote(name) for name in names}])


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Run the server on a free port of the loopback interface; `hub.url` is its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def point_at(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process's `huggingface_hub` ask the stand-in. (Other processes are told by HF_ENDPOINT.)"""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
