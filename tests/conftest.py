"""What several test files share. Engines are slow to import and start, so their artifacts are made once a session."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.dag import Dag
from pipeline.engines.device import Execution, prepare_environment
from tests.checkpoints import Lab
from tests.repository import copy_repository, snakemake

prepare_environment(Execution(device="cpu"))


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

    Its name is one that users have and that shells, Hydra and the like have to quote.
    """
    folder = tmp_path_factory.mktemp("repository") / "実験 (v2) it's"
    folder.mkdir()
    copy_repository(folder)
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout[-10000:]
    return folder


@pytest.fixture
def copy(smoke: Path, tmp_path: Path) -> Path:
    """A copy of that, to break."""
    return Path(shutil.copytree(smoke, tmp_path / "copy", symlinks=True))


@pytest.fixture
def dag(smoke: Path) -> Dag:
    """The DAG of scale smoke."""
    return Dag.load("smoke", smoke / "config" / "grid.yaml")
