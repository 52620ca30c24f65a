"""Which evaluations one process makes."""

from pipeline.dag.together import together, upstream
from tests.helpers.synthetic import dag_of

DAG = dag_of(
    {"hidden": 32, "experts": 4, "topk": 2, "grpo": True},
    {"hidden": 32, "experts": 8, "topk": 2, "evaluate": ["taskloss"]},
)
FIRST, SECOND = DAG.points


def led(without: tuple[str, ...] = (), **options) -> set[tuple[str, ...]]:
    """Who leads whom, with point and variant, where the stages `without` are made already."""
    to_make = {job for job in DAG.jobs if job.stage not in without}
    found = together(DAG, to_make, **options)
    return {
        (str(leader.point), str(leader.variant), leader.stage, *(job.stage for job in others))
        for leader, others in found.items()
    }


def test_the_first_of_a_checkpoints_evaluations_leads_the_others() -> None:
    all_three = ("benchmark", "decode", "taskloss")
    assert led() == {(FIRST, "base", *all_three), (FIRST, "grpo", *all_three)}, "the second point has one only"


def test_what_is_made_neither_leads_nor_follows() -> None:
    assert led(("benchmark",)) == {(FIRST, "base", "decode", "taskloss"), (FIRST, "grpo", "decode", "taskloss")}
    assert led(("benchmark", "decode")) == set()


def test_what_runs_on_other_gpus_is_made_apart() -> None:
    wide = {"decode": 8}
    found = led(alike=lambda job: wide.get(job.stage, 1))
    assert found == {(FIRST, "base", "benchmark", "taskloss"), (FIRST, "grpo", "benchmark", "taskloss")}


def test_what_is_asked_for_holds_what_it_is_made_from() -> None:
    (job,) = (job for job in DAG.of("decode") if job.variant == "grpo")
    stages = {one.stage for one in upstream(DAG, [job])}
    assert {"decode", "grpo", "convert", "pretrain", "tokenizer", "corpus"} <= stages
    assert stages.isdisjoint({"benchmark", "taskloss", "table"})
