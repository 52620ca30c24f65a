# Pre-training with Megatron-core (pipeline/stages/pretrain.py).


rule pretrain_job:
    input:
        inputs_of("pretrain"),
    output:
        f"results/{SCALE}/{{point}}/pretrain/record.json",
    log:
        f"logs/{SCALE}/{{point}}/pretrain.log",
    priority: 30
    conda:
        ENVIRONMENT
    threads: 1
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
    params:
        scale=SCALE,
        identity=identity_of("pretrain"),
    shell:
        "python -m pipeline.stages.pretrain --scale {params.scale} --point {wildcards.point}"
        " --device {resources.device} --nodes {resources.nodes} --ranks {resources.ranks} --save-interval {resources.save_interval}"
        " --tp {resources.tp} --pp {resources.pp} --ep {resources.ep}"
        " &> {log}"
