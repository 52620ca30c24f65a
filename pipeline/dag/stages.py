"""The table of stages: for each, what it is made for, what it reads, what identifies it, and what it takes.

Everything that has to know the stages reads this table: the DAG, the stages' command lines, Snakemake's rules, what a
job asks a scheduler for, `plan`, `fetch`, the results table. A stage is one entry here and one module of its name in
pipeline/stages (docs/howto/new-evaluation.md adds one). An entry that leaves out what has no default does not import.

    corpus -> tokenize -> pretrain -> convert -> grpo
        \\-> tokenizer -/            \\_____________\\-> benchmark, decode, taskloss -> table -> figures -> report
    benchdata (of the published tasks that a scale names) -> grpo, benchmark, decode, taskloss, and corpus (`screens`)

    tokenizer, items of tasks -> preflight, for which pretrain, grpo and evaluations wait without reading it

    benchmark, decode, taskloss, pretrain, grpo of several scales -> study

A point that names a finished checkpoint has `adopt` in place of pretrain and convert, and if that brings its own
tokenizer, a preflight of its own.
"""

from typing import Any

from pipeline.dag import upstream
from pipeline.dag.stage import Answer, OnCpu, Request, Stage

BASE, GRPO = "base", "grpo"  # variants: the pre-trained (or adopted) model, and the post-trained one


def evaluation(
    *,
    version: int,
    answer: Answer,
    engines: tuple[str, ...],
    request: Request,
    on_cpu: OnCpu,
    kept: bool = False,
) -> Stage:
    """An evaluation of checkpoints on tasks; its settings are the scale's section of its name."""
    return Stage(
        version=version,
        unit=("point", "variant"),
        jobs=upstream.each_variant,
        inputs=upstream.evaluation_inputs,
        settings=upstream.own_section,
        engines=engines,
        request=request,
        on_cpu=on_cpu,
        answer=answer,
        kept=kept,
        computes=True,
        laid_out=True,
        tabulated=True,
    )


# Upstream first.
STAGES: dict[str, Stage] = {
    "benchdata": Stage(
        version=2,
        unit=("source",),
        jobs=upstream.each_benchmark,
        inputs=upstream.searched_benchmarks,
        settings=upstream.benchdata_settings,
        data=True,
        fetches=True,
        needs_network=lambda dag: any(data.path is None for data in dag.benchmarks.values()),
        request=Request(minutes=120),
        on_cpu=OnCpu(start_s=10),
    ),
    "corpus": Stage(
        version=3,
        unit=("source",),
        jobs=upstream.each_source,
        inputs=upstream.searched_benchmarks,
        settings=upstream.corpus_settings,
        data=True,
        fetches=True,
        needs_network=lambda dag: any(source.needs_network for source in dag.datasets.values()),
        request=Request(minutes=600),
        on_cpu=OnCpu(start_s=4, rate=156e6),
    ),
    "tokenizer": Stage(
        version=2,
        unit=(),
        jobs=upstream.one_job,
        inputs=upstream.tokenizer_inputs,
        settings=upstream.tokenizer_settings,
        data=True,
        fetches=True,
        needs_network=lambda dag: dag.tokenizer.kind == "file" and bool(dag.tokenizer.urls),
        request=Request(minutes=60),
        on_cpu=OnCpu(start_s=6),
    ),
    "adopt": Stage(
        version=2,
        unit=("point",),
        jobs=upstream.each_adopting_point,
        inputs=upstream.adopt_inputs,
        settings=upstream.adopt_settings,
        fetches=True,
        needs_network=lambda dag: any(point.adopt and point.adopt.repo for point in dag.points.values()),
        tabulated=True,
        model_dtype=upstream.trained_dtype,
        request=Request(minutes=1440, base_mb=1000),
        on_cpu=OnCpu(start_s=10),
        priority=40,
    ),
    "preflight": Stage(
        version=1,
        unit=(),
        optional_unit={"point": "a point that adopts a checkpoint with a tokenizer of its own"},
        jobs=upstream.each_gate,
        inputs=upstream.preflight_inputs,
        settings=upstream.preflight_settings,
        request=Request(minutes=120),
        on_cpu=OnCpu(start_s=5),
        priority=60,
    ),
    "tokenize": Stage(
        version=2,
        unit=("source",),
        jobs=upstream.each_source,
        inputs=upstream.tokenize_inputs,
        settings=upstream.tokenize_settings,
        data=True,
        request=Request(minutes=1440),
        on_cpu=OnCpu(start_s=8, rate=13.9e6),
    ),
    "pretrain": Stage(
        version=4,
        unit=("point",),
        jobs=upstream.each_trained_point,
        inputs=upstream.pretrain_inputs,
        settings=upstream.pretrain_settings,
        computes=True,
        laid_out=True,
        tabulated=True,
        model_dtype=upstream.trained_dtype,
        # Minutes are what queues allow: training goes on after its time is up (Slurm: by itself; PBS: by `retries`).
        # Memory: the weights, and their fp32 copy and two moments while a save passes through.
        request=Request(minutes=1440, bytes_per_parameter=18),
        on_cpu=OnCpu(start_s=8, rate=1.9e10),
        priority=30,
    ),
    "convert": Stage(
        version=1,
        unit=("point",),
        optional_unit={"variant": "a step that pretrain.keep names, such as step-001000 (default: the last)"},
        jobs=upstream.each_trained_point_and_kept_step,
        inputs=upstream.convert_inputs,
        settings=upstream.convert_settings,
        laid_out=True,
        tabulated=True,
        model_dtype=upstream.trained_dtype,
        # Memory: both layouts of the weights, in fp32.
        request=Request(minutes=60, minutes_per_billion=30, bytes_per_parameter=12),
        on_cpu=OnCpu(start_s=6),
        priority=40,
    ),
    "grpo": Stage(
        version=3,
        unit=("point",),
        jobs=upstream.each_post_trained_point,
        inputs=upstream.grpo_inputs,
        settings=upstream.own_section,
        engines=("verl", "vllm"),
        computes=True,
        laid_out=True,
        tabulated=True,
        model_dtype=upstream.grpo_dtype,
        # As pre-training, and the whole model beside it. Of the KV cache its actor needs the rest.
        request=Request(minutes=1440, base_mb=5500, bytes_per_parameter=24, sequences=16),
        on_cpu=OnCpu(start_s=60, rate=5.8e9),
        priority=50,
    ),
    # Evaluations: vLLM reads a file of weights at a time, and the page cache keeps it.
    "benchmark": evaluation(
        version=2,
        answer="greedy",
        kept=True,
        engines=("vllm", "lm-eval"),
        request=Request(minutes=240, minutes_per_billion=240, bytes_per_parameter=4),
        on_cpu=OnCpu(start_s=8, rate=3e9),
    ),
    "decode": evaluation(
        version=2,
        answer="sampled",
        engines=("vllm",),
        request=Request(minutes=240, minutes_per_billion=240, bytes_per_parameter=4),
        on_cpu=OnCpu(start_s=4, rate=3e9),
    ),
    "taskloss": evaluation(
        version=3,
        answer="scored",
        kept=True,
        engines=("vllm",),
        request=Request(minutes=60, minutes_per_billion=60, bytes_per_parameter=4),
        on_cpu=OnCpu(start_s=4, rate=3e9),
    ),
    "table": Stage(
        version=6,
        unit=(),
        jobs=upstream.one_job,
        inputs=upstream.all_tabulated,
        settings=upstream.title,
        analysis=True,
        request=Request(minutes=30, base_mb=1000),
        on_cpu=OnCpu(start_s=3),
    ),
    "claims": Stage(
        version=2,
        unit=(),
        jobs=upstream.one_job,
        inputs=upstream.claims_inputs,
        settings=upstream.claims_settings,
        analysis=True,
        request=Request(minutes=30, base_mb=1000),
        on_cpu=OnCpu(start_s=3),
    ),
    "figures": Stage(
        version=6,
        unit=(),
        jobs=upstream.one_job,
        inputs=upstream.figures_inputs,
        settings=upstream.title,
        analysis=True,
        request=Request(minutes=30, base_mb=1000),
        on_cpu=OnCpu(start_s=6),
    ),
    "report": Stage(
        version=7,
        unit=(),
        jobs=upstream.one_job,
        inputs=upstream.report_inputs,
        settings=upstream.report_settings,
        analysis=True,
        request=Request(minutes=30, base_mb=1000),
        on_cpu=OnCpu(start_s=3),
    ),
    "study": Stage(
        version=3,
        unit=(),
        jobs=upstream.no_job,
        inputs=upstream.study_inputs,
        settings=upstream.study_settings,
        analysis=True,
        request=Request(minutes=30, base_mb=1500),
        on_cpu=OnCpu(start_s=8),
    ),
}


def those(**attributes: Any) -> tuple[str, ...]:
    """The stages with these attributes, upstream first: `those(fetches=True)`."""
    return tuple(
        name
        for name, stage in STAGES.items()
        if all(getattr(stage, attribute) == value for attribute, value in attributes.items())
    )


EVALUATIONS = tuple(name for name, stage in STAGES.items() if stage.answer)
