# Pre-training with Megatron-core (pipeline/stages/pretrain.py).


rule pretrain_job:
    input:
        inputs_of("pretrain"),
    output:
        update(f"results/{SCALE}/{{point}}/pretrain/record.json"),
    log:
        f"logs/{SCALE}/{{point}}/pretrain.log",
    priority: 30
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10080,
        gpus=GPUS,
        device="auto",
        ranks=1,
        save_interval=500,
        tp=1,
        pp=1,
        ep=1,
    params:
        scale=SCALE,
    shell:
        "python -m pipeline.stages.pretrain --scale {params.scale} --point {wildcards.point}"
        " --device {resources.device} --ranks {resources.ranks} --save-interval {resources.save_interval}"
        " --tp {resources.tp} --pp {resources.pp} --ep {resources.ep}"
        " &>> {log}"
