"""The jobs of each stage at a scale, what they read, and which of the configuration identifies them.

The table of stages (stages.py) names these functions. Each gets the DAG and, but for lists of jobs, one job of it.
"""

from typing import TYPE_CHECKING, Any

from pipeline.config.recipes import DType
from pipeline.dag.identity import identity
from pipeline.dag.stage import Inputs
from pipeline.data.registry import TOKENIZING

if TYPE_CHECKING:
    from pipeline.dag.dag import Dag
    from pipeline.dag.job import Job
    from pipeline.dag.point import Point
    from pipeline.dag.study import StudyDag

# Keys of evaluations and of the GRPO recipe that change neither a prompt nor whether it fits.
UNASKED = {"dtype", "samples", "temperature", "top_p", "steps", "rollouts", "mini_batch", "lr", "kl_coef", "clip"}
UNASKED |= {"dual_clip", "clip_grad", "l1_clip", "weight_decay", "eval_interval", "max_probs_diff", "reward", "extra"}


def own_section(dag: "Dag", job: "Job") -> dict[str, Any]:
    """The scale's section of the stage's name."""
    return {job.stage: identity(getattr(dag.scale, job.stage))}


def one_job(dag: "Dag", stage: str) -> "list[Job]":
    return [dag.job(stage)]


# ------------------------------------------------------------------------------------------------------- the data


def each_benchmark(dag: "Dag", stage: str) -> "list[Job]":
    return [dag.job(stage, source=name) for name in dag.benchmarks]


def each_source(dag: "Dag", stage: str) -> "list[Job]":
    return [dag.job(stage, source=name) for name in dag.datasets]


def of_sources(dag: "Dag", stage: str) -> Inputs:
    return {f"{stage}/{name}": dag.job(stage, source=name) for name in dag.datasets}


def searched_benchmarks(dag: "Dag", job: "Job") -> Inputs:
    return dag.screens(job)


def tokenizer_inputs(dag: "Dag", job: "Job") -> Inputs:
    return of_sources(dag, "corpus") if dag.tokenizer.kind == "words" else {}


def tokenize_inputs(dag: "Dag", job: "Job") -> Inputs:
    return {"corpus": dag.job("corpus", source=job.source), "tokenizer": dag.job("tokenizer")}


def benchdata_settings(dag: "Dag", job: "Job") -> dict[str, Any]:
    return {"data": identity(dag.benchmarks[str(job.source)])}


def corpus_settings(dag: "Dag", job: "Job") -> dict[str, Any]:
    return {"source": identity(dag.datasets[str(job.source)], but=TOKENIZING)}


def tokenizer_settings(dag: "Dag", job: "Job") -> dict[str, Any]:
    return {"tokenizer": identity(dag.tokenizer), "vocab_size": dag.scale.model.vocab_size}


def tokenize_settings(dag: "Dag", job: "Job") -> dict[str, Any]:
    own = identity(dag.datasets[str(job.source)], only=TOKENIZING)
    return {"validation": dag.scale.data.validation} | own


# ------------------------------------------------------------------------------------------------------ the models


def each_trained_point(dag: "Dag", stage: str) -> "list[Job]":
    return [dag.job(stage, point=name) for name, point in dag.points.items() if not point.adopt]


def each_trained_point_and_kept_step(dag: "Dag", stage: str) -> "list[Job]":
    last = {job.point: job for job in each_trained_point(dag, stage)}
    return [
        made
        for name, job in last.items()
        for made in (job, *(dag.job(stage, point=name, variant=step) for step in dag.points[str(name)].kept))
    ]


def each_adopting_point(dag: "Dag", stage: str) -> "list[Job]":
    return [dag.job(stage, point=name) for name, point in dag.points.items() if point.adopt]


def each_post_trained_point(dag: "Dag", stage: str) -> "list[Job]":
    return [dag.job(stage, point=name) for name, point in dag.points.items() if point.grpo]


def each_gate(dag: "Dag", stage: str) -> "list[Job]":
    gates = dict.fromkeys(gate for name in dag.points if (gate := dag.preflight(name)))
    return sorted(gates, key=lambda gate: gate.point is not None)  # the scale's first


def adopt_inputs(dag: "Dag", job: "Job") -> Inputs:
    adopt = dag.point(job).adopt
    return {"tokenizer": dag.job("tokenizer")} if adopt and adopt.tokenizer == "scale" else {}


def preflight_inputs(dag: "Dag", job: "Job") -> Inputs:
    tokenizer = {"checkpoint": dag.checkpoint(job.point)} if job.point else {"tokenizer": dag.job("tokenizer")}
    stages = dag.asking(job.point)
    return tokenizer | dag.task_inputs(asked.entry.task for asked in dag.asked if asked.stage in stages)


def pretrain_inputs(dag: "Dag", job: "Job") -> Inputs:
    return of_sources(dag, "tokenize")


def convert_inputs(dag: "Dag", job: "Job") -> Inputs:
    trained = {"pretrain": dag.job("pretrain", point=job.point), "tokenizer": dag.job("tokenizer")}
    return trained | of_sources(dag, "tokenize")


def grpo_inputs(dag: "Dag", job: "Job") -> Inputs:
    assert dag.scale.grpo is not None
    return {"checkpoint": dag.checkpoint(job.point)} | dag.task_inputs([dag.scale.grpo.task])


def model_settings(dag: "Dag", job: "Job") -> dict[str, Any]:
    point = dag.point(job)
    return {"point": point.identity, "model": identity(point.model)}


def adopt_settings(dag: "Dag", job: "Job") -> dict[str, Any]:
    adopt = dag.point(job).adopt
    assert adopt is not None
    return model_settings(dag, job) | {"adopt": identity(adopt)}


def pretrain_settings(dag: "Dag", job: "Job") -> dict[str, Any]:
    recipe, blend = identity(dag.point(job).pretrain), dict(dag.scale.data.sources)
    return model_settings(dag, job) | {"pretrain": recipe, "blend": blend}


def convert_settings(dag: "Dag", job: "Job") -> dict[str, Any]:
    step = {"step": dag.point(job).kept[job.variant]} if job.variant else {}
    return own_section(dag, job) | step


def preflight_settings(dag: "Dag", job: "Job") -> dict[str, Any]:
    asked = {stage: identity(getattr(dag.scale, stage), but=UNASKED) for stage in dag.asking(job.point)}
    return {"asked": asked, "sequence_length": dag.scale.model.sequence_length}


def trained_dtype(dag: "Dag", point: "Point") -> DType:
    return point.pretrain.dtype


def grpo_dtype(dag: "Dag", point: "Point") -> DType:
    assert dag.scale.grpo is not None
    return dag.scale.grpo.dtype


# ----------------------------------------------------------------------------------------------------- evaluations


def each_variant(dag: "Dag", stage: str) -> "list[Job]":
    if getattr(dag.scale, stage) is None:
        return []
    return [dag.job(stage, point=name, variant=v) for name in dag.points for v in dag.variants(name, stage)]


def evaluation_inputs(dag: "Dag", job: "Job") -> Inputs:
    checkpoint = {"checkpoint": dag.checkpoint(job.point, job.variant)}
    return checkpoint | dag.task_inputs(entry.task for entry in getattr(dag.scale, job.stage).tasks)


# -------------------------------------------------------------------------------------------------------- analysis


def all_tabulated(dag: "Dag", job: "Job") -> Inputs:
    return {made.label.replace(" ", "/"): made for made in dag.tabulated}


def figures_inputs(dag: "Dag", job: "Job") -> Inputs:
    return {"table": dag.job("table")}


def report_inputs(dag: "Dag", job: "Job") -> Inputs:
    """The analysis; and where models are trained, the tokens of the sources whose number the registry lacks."""
    analysis = {"table": dag.job("table"), "claims": dag.job("claims"), "figures": dag.job("figures")}
    trained = any(not point.adopt for point in dag.points.values())
    uncounted = [name for name, source in dag.datasets.items() if getattr(source, "tokens", None) is None]
    return analysis | {f"tokenize/{name}": dag.job("tokenize", source=name) for name in uncounted if trained}


def report_settings(dag: "Dag", job: "Job") -> dict[str, Any]:
    return {"title": dag.scale.title, "sources": dict(dag.scale.data.sources)}


def claims_inputs(dag: "Dag", job: "Job") -> Inputs:
    return {"table": dag.job("table")}


def claims_settings(dag: "Dag", job: "Job") -> dict[str, Any]:
    """All claims: those about other scales are listed too, as not run."""
    return identity(dag.claims)


def title(dag: "Dag", job: "Job") -> dict[str, Any]:
    return {"title": dag.scale.title}


# ---------------------------------------------------------------------------------------------------------- studies


def no_job(dag: "Dag", stage: str) -> "list[Job]":
    """A scale has none; a study has its own (study.py)."""
    return []


def study_inputs(dag: "StudyDag", job: "Job") -> Inputs:
    return dag.compared()


def study_settings(dag: "StudyDag", job: "Job") -> dict[str, Any]:
    """The study's entry, and the claims that it answers with what they are judged by."""
    claims = {name: identity(claim) for name, claim in dag.claims.claims.items()}
    judged = {"claims": claims, "level": dag.claims.level, "least_models": dag.claims.least_models}
    return {"study": identity(dag.study)} | judged
