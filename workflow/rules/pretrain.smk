# Pre-training with Megatron-core (pipeline/stages/pretrain.py).


rule pretrain_job:
    input:
        inputs_of("pretrain"),
    output:
        update("results/{scale}/{point}/pretrain/record.json"),
    log:
        "logs/{scale}/{point}/pretrain.log",
    priority: 30
    conda:
        ENVIRONMENT
    threads: need("pretrain", "cores")
    resources:
        mem_mb=need("pretrain", "mem_mb"),
        runtime=need("pretrain", "runtime"),
        nodes=need("pretrain", "nodes"),
        gpus=need("pretrain", "gpus"),
        gres=need("pretrain", "gres"),
        device="auto",
        ranks=need("pretrain", "ranks"),
        save_interval=500,
        tp=need("pretrain", "tp"),
        pp=need("pretrain", "pp"),
        ep=need("pretrain", "ep"),
    shell:
        "python -m pipeline.stages.pretrain --scale {wildcards.scale} --point {wildcards.point}"
        " --device {resources.device} --save-interval {resources.save_interval}"
        " --nodes {resources.nodes} --ranks {resources.ranks} --tp {resources.tp} --pp {resources.pp} --ep {resources.ep}"
        " &>> {log}"
