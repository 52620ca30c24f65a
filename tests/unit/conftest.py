"""What runs at every save stays quick: no unit test imports an engine."""

import sys
from collections.abc import Iterator

import pytest

ENGINES = {"torch", "transformers", "megatron", "vllm", "verl", "ray", "lm_eval", "datasets"}


@pytest.fixture(scope="session")
def alone(request: pytest.FixtureRequest) -> bool:
    """Whether only unit tests run. The files of others import engines when they are collected, and nothing is seen."""
    return all("unit" in item.path.parts for item in request.session.items)


@pytest.fixture(autouse=True)
def without_engines(alone: bool) -> Iterator[None]:
    yield
    assert not alone or not ENGINES & sys.modules.keys(), "an engine was imported: the test belongs in tests/engines"
