"""Adopting a checkpoint of the hub, and all that follows from an adopted one."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.artifacts.record import Record, sha256_file
from pipeline.data.download import git_blob
from tests.helpers.adopting import NAME, grid_of
from tests.helpers.repository import copy_repository, snakemake


class Hub(http.server.BaseHTTPRequestHandler):
    """What the hub's client asks of it: the commit of a revision, the files of a commit, and a file."""

    folder: Path
    commit = "c0ffee" + "0" * 34
    fetched: list[str]
    damaged: str | None = None

    def log_message(self, *_: Any) -> None: ...

    def answer(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/api/models/org/tiny/revision/main":
            body: Any = {"id": "org/tiny", "sha": self.commit, "siblings": []}
            return self.answer(json.dumps(body).encode(), {"Content-Type": "application/json"})
        if path.startswith(f"/api/models/org/tiny/tree/{self.commit}"):
            body = [self.entry(file) for file in sorted(self.folder.iterdir())]
            return self.answer(json.dumps(body).encode(), {"Content-Type": "application/json"})
        prefix = f"/org/tiny/resolve/{self.commit}/"
        if not path.startswith(prefix):
            return self.answer(b"{}", {"X-Error-Code": "RepoNotFound"}, 404)
        name = path.removeprefix(prefix)
        content = (self.folder / name).read_bytes()
        if self.command == "GET":
            self.fetched.append(name)
            if self.damaged == name:
                content = content[:-1] + b"\0"
        etag = hashlib.sha256((self.folder / name).read_bytes()).hexdigest()
        self.answer(content, {"X-Repo-Commit": self.commit, "ETag": f'"{etag}"'})

    do_HEAD = do_GET

    def entry(self, file: Path) -> dict[str, Any]:
        size, known = file.stat().st_size, {"type": "file", "path": file.name, "oid": git_blob(file)}
        if file.suffix == ".safetensors":
            known["lfs"] = {"oid": sha256_file(file), "size": size, "pointerSize": 130}
        return known | {"size": size}


@pytest.fixture
def hub(released: Path) -> Iterator[type[Hub]]:
    class Here(Hub):
        folder, fetched, damaged = released, [], None

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Here) as server:
        Here.endpoint = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Here
        server.shutdown()


def from_hub(hub: type[Hub], config: Path, name: str = NAME) -> subprocess.CompletedProcess[str]:
    """The stage's command line in a process of its own, since the client reads its address once."""
    command = [sys.executable, "-m", "pipeline.stages.adopt", "--config", str(config), "--scale", "smoke"]
    command += ["--point", name, "--results", str(config.with_name("results"))]
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_model_of_the_hub_is_fetched_at_the_commit_its_branch_stands_at(lab, hub, released, tmp_path):
    config = grid_of(lab, tmp_path, {"repo": "org/tiny", "revision": "main"})
    weights = "model-00002-of-00005.safetensors"
    hub.damaged = weights
    done = from_hub(hub, config)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"error: org/tiny@{hub.commit}: {weights}: SHA-256 of what came from {hub.endpoint}" in done.stdout
    assert hub.fetched[-1] == weights, "the files after a damaged one are not asked for"
    whole = set(hub.fetched[:-1])

    hub.damaged, hub.fetched = None, []
    done = from_hub(hub, config)
    assert done.returncode == 0, done.stdout + done.stderr
    rest = {path.name for path in released.iterdir()} - whole
    assert weights in rest and sorted(hub.fetched) == sorted(rest), "what was there already is not fetched again"
    out = tmp_path / "results" / "smoke" / NAME / "adopt"
    metrics = Record.model_validate_json((out / "record.json").read_text()).metrics
    assert (metrics["origin"], metrics["commit"]) == ("org/tiny", hub.commit)
    assert [f"revision 'main' may move; it was {hub.commit}" in warning for warning in metrics["warnings"]] == [True]
    assert all((out / path.name).read_bytes() == path.read_bytes() for path in released.iterdir())


def test_a_repository_that_is_not_there_is_said_to_be(lab, hub, tmp_path):
    done = from_hub(hub, grid_of(lab, tmp_path, {"repo": "org/tiny-{name}", "revision": "main"}))
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert f"error: org/tiny-{NAME}@main: the hub does not give it: " in done.stdout


# ------------------------------------------------------------------------------------------------ all of it


@pytest.mark.parametrize("grpo", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["base", "grpo"])
def test_an_adopted_checkpoint_goes_through_every_evaluation_grpo_and_the_figures(lab, released, tmp_path, grpo):
    folder = tmp_path / "repository"
    folder.mkdir()
    copy_repository(folder)
    grid_of(lab, folder / "config", {"path": str(released)}, grpo=grpo)
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout[-5000:]
    results = folder / "results" / "smoke"
    table = pd.read_parquet(results / "table" / "results.parquet")
    for stage in ("benchmark", "decode", "taskloss"):
        assert set(table[table["stage"] == stage]["variant"]) == {"base", *["grpo"] * grpo}
    assert set(table["stage"]) == {"benchmark", "decode", "taskloss", *["grpo"] * grpo}
    figures = {entry["name"] for entry in json.loads((results / "figures" / "figures.json").read_text())}
    assert figures >= {"overview", "task_loss", "accuracy", "self_consistency", *["grpo", "grpo_reward"] * grpo}
    assert not figures & {"loss", "training"}
    page = (results / "report.html").read_text()
    assert "models adopted" in page and "models trained" not in page and str(released) in page
    assert "Nothing to be done" in snakemake(folder).stdout
