"""What several test files share. Engines are slow to import and start, so their artifacts are made once a session."""

import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pipeline.dag.dag import Dag
from pipeline.runtime.execution import Execution, prepare_environment
from tests.helpers.checkpoints import Lab
from tests.helpers.repository import ROOT, copy_repository, snakemake

prepare_environment(Execution(device="cpu"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The whole suite runs in two processes, each of which may run two jobs at a time; anything less in this one."""
    return 2 if config.args == config.getini("testpaths") else 0


@cache
def needs_run(file: str) -> bool:
    """Whether tests of a file take `smoke` (or what is made of it), a finished run of that scale: minutes to make."""
    text = (ROOT / file).read_text()
    return (
        "workflow/" in file and re.search(r"^def test_\w+\([^)]*\b(smoke|copy|dag)\b", text, re.MULTILINE) is not None
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process has all the files that need such a run; the others are dealt out."""
    from xdist.scheduler import LoadScopeScheduling

    class OneRun(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "smoke" if needs_run(file) else file

    return OneRun(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long first, so that both processes end at about the same time."""
    files = {item: item.nodeid.partition("::")[0] for item in items}
    items.sort(key=lambda item: (not needs_run(files[item]), "workflow/" not in files[item]))


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A tiny trained checkpoint among the artifacts it belongs to."""
    return Lab.build(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def fresh(lab: Lab, tmp_path: Path) -> Lab:
    """The same checkpoint in a results folder of its own, where nothing has been evaluated."""
    results = tmp_path / "results"
    for stage in ("corpus", "tokenizer", "convert"):
        for job in lab.dag.of(stage):
            shutil.copytree(lab.results / job.folder, results / job.folder)
    return Lab(lab.config, results, lab.dag)


@pytest.fixture(scope="session")
def reference(lab: Lab) -> tuple[Any, Any]:
    """The checkpoint's model and tokenizer in plain transformers, fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(lab.checkpoint, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(lab.checkpoint)


@pytest.fixture(scope="session")
def token_nll(reference: tuple[Any, Any]) -> Callable[[list[int]], list[float]]:
    """Negative log-likelihood in nats of each token after the first, by plain transformers."""
    import torch

    model, _ = reference

    def nll(ids: list[int]) -> list[float]:
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return [-scores[i - 1, ids[i]].item() for i in range(1, len(ids))]

    return nll


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which `snakemake --config scale=smoke` has been run once; tests leave it so.

    What it said is in logs/said.

    Its name is one that users have and that shells, Hydra and the like have to quote.
    """
    folder = tmp_path_factory.mktemp("repository") / "実験 (v2) it's"
    folder.mkdir()
    copy_repository(folder)
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout[-10000:]
    (folder / "logs/said").write_text(done.stdout)
    return folder


@pytest.fixture
def copy(smoke: Path, tmp_path: Path) -> Path:
    """A copy of that, to break."""
    return Path(shutil.copytree(smoke, tmp_path / "copy", symlinks=True))


@pytest.fixture
def dag(smoke: Path) -> Dag:
    """The DAG of scale smoke."""
    return Dag.load("smoke", smoke / "config" / "grid.yaml")
