"""What jobs ask a scheduler for."""

import pytest

from pipeline.config.layouts import Layout, Layouts
from pipeline.dag.dag import Dag
from pipeline.dag.stages import STAGES
from pipeline.planning.requests import needs
from tests.helpers.config import CONFIG


@pytest.fixture(scope="module")
def math() -> tuple[Dag, Layouts]:
    return Dag.load("math", CONFIG / "grid.yaml"), Layouts.load("math", CONFIG / "layouts.yaml")


def test_every_job_of_every_point_can_be_asked_for(math: tuple[Dag, Layouts]) -> None:
    dag, layouts = math
    for job in dag.jobs:
        layout = layouts.of(job.point, job.stage) if STAGES[job.stage].laid_out else Layout()
        asked = needs(job.stage, dag.points[job.point] if job.point else None, layout, True)
        assert min(asked.nodes, asked.cores, asked.mem_mb, asked.runtime) > 0


def test_larger_models_ask_for_more(math: tuple[Dag, Layouts]) -> None:
    dag, layouts = math
    small, large = "d512-E8-k2-320M-A170M", "d2048-E128-k16-52.2B-A7.1B"
    for stage in ("pretrain", "convert", "grpo", "benchmark", "decode", "taskloss"):
        less, more = (needs(stage, dag.points[p], layouts.of(p, stage), True) for p in (small, large))
        assert more.mem_mb > less.mem_mb and more.runtime >= less.runtime and more.gpus >= less.gpus
    assert needs("pretrain", dag.points[large], layouts.of(large, "pretrain"), True).nodes == 16


def test_without_gpus_none_are_asked_for(math: tuple[Dag, Layouts]) -> None:
    dag, layouts = math
    for name, point in dag.points.items():
        asked = needs("grpo", point, layouts.of(name, "grpo"), False)
        assert asked.gpus == 0 and asked.gres == ""
