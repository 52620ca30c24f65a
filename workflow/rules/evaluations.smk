# Evaluations of checkpoints on vLLM, one rule for each that the table of stages has (pipeline/dag/stages.py): benchmark
# (lm-evaluation-harness), decode (self-consistency) and taskloss (log-likelihood of gold answers). The first of a
# checkpoint's evaluations that a run makes starts the engine, and makes the others too (pipeline/dag/together.py).


for stage in EVALUATIONS:

    rule:
        name:
            f"{stage}_job"
        input:
            inputs_of(stage),
        output:
            update(f"results/{{scale}}/{{point}}/{stage}/{{variant}}/record.json"),
        log:
            f"logs/{{scale}}/{{point}}/{stage}/{{variant}}.log",
        conda:
            ENVIRONMENT
        threads: need(stage, "cores")
        resources:
            mem_mb=need(stage, "mem_mb"),
            runtime=need(stage, "runtime"),
            gpus=need(stage, "gpus"),
            gres=need(stage, "gres"),
            device="auto",
            ranks=need(stage, "ranks"),
            cache_mb=need(stage, "cache_mb"),
        params:
            stage=stage,
            then=then(stage),
        # Snakemake evaluates this text when the job runs, and `stage` is then the loop's last.
        shell:
            "python -m pipeline.stages.{params.stage}"
            " --scale {wildcards.scale} --point {wildcards.point} --variant {wildcards.variant}"
            " --device {resources.device} --ranks {resources.ranks} --memory-mb {resources.cache_mb}"
            " {params.then}"
            " &>> {log}"
