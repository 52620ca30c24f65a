# lm-evaluation-harness on vLLM (pipeline/stages/benchmark.py).


rule benchmark_job:
    input:
        inputs_of("benchmark"),
    output:
        update(f"results/{SCALE}/{{point}}/benchmark/{{variant}}/record.json"),
    log:
        f"logs/{SCALE}/{{point}}/benchmark/{{variant}}.log",
    conda:
        ENVIRONMENT
    threads: need("benchmark", "cores")
    resources:
        mem_mb=need("benchmark", "mem_mb"),
        runtime=need("benchmark", "runtime"),
        gpus=need("benchmark", "gpus"),
        gres=need("benchmark", "gres"),
        device="auto",
        ranks=need("benchmark", "ranks"),
        cache_mb=need("benchmark", "cache_mb"),
    params:
        scale=SCALE,
    shell:
        "python -m pipeline.stages.benchmark --scale {params.scale} --point {wildcards.point} --variant {wildcards.variant}"
        " --device {resources.device} --ranks {resources.ranks} --memory-mb {resources.cache_mb}"
        " &>> {log}"
