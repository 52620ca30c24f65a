"""Fixtures of the tests of Snakemake, clusters and the set-up."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.runtime.execution import gpus_here
from tests.helpers.machine import PYTHON, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine with Python 3.11 and no GPU; whether there is one is asked anew afterwards."""
    made = Machine(tmp_path)
    made.put("python3.11", PYTHON)
    yield made
    gpus_here.cache_clear()
