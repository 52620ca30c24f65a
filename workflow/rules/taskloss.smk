# Negative log-likelihood of gold answers on vLLM (pipeline/stages/taskloss.py).


rule taskloss_job:
    input:
        inputs_of("taskloss"),
    output:
        update(f"results/{SCALE}/{{point}}/taskloss/{{variant}}/record.json"),
    log:
        f"logs/{SCALE}/{{point}}/taskloss/{{variant}}.log",
    conda:
        ENVIRONMENT
    threads: need("taskloss", "cores")
    resources:
        mem_mb=need("taskloss", "mem_mb"),
        runtime=need("taskloss", "runtime"),
        gpus=need("taskloss", "gpus"),
        gres=need("taskloss", "gres"),
        device="auto",
        ranks=need("taskloss", "ranks"),
        cache_mb=need("taskloss", "cache_mb"),
    params:
        scale=SCALE,
    shell:
        "python -m pipeline.stages.taskloss --scale {params.scale} --point {wildcards.point} --variant {wildcards.variant}"
        " --device {resources.device} --ranks {resources.ranks} --memory-mb {resources.cache_mb}"
        " &>> {log}"
