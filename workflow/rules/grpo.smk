# GRPO in verl (pipeline/stages/grpo.py).


rule grpo_job:
    input:
        inputs_of("grpo"),
    output:
        update("results/{scale}/{point}/grpo/record.json"),
    log:
        "logs/{scale}/{point}/grpo.log",
    priority: 50
    conda:
        ENVIRONMENT
    threads: need("grpo", "cores")
    resources:
        mem_mb=need("grpo", "mem_mb"),
        runtime=need("grpo", "runtime"),
        gpus=need("grpo", "gpus"),
        gres=need("grpo", "gres"),
        device="auto",
        ranks=need("grpo", "ranks"),
        tp=need("grpo", "tp"),
        cache_mb=need("grpo", "cache_mb"),
        save_interval=500,
    shell:
        "python -m pipeline.stages.grpo --scale {wildcards.scale} --point {wildcards.point}"
        " --device {resources.device} --ranks {resources.ranks} --tp {resources.tp}"
        " --memory-mb {resources.cache_mb} --save-interval {resources.save_interval}"
        " &>> {log}"
