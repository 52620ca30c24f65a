# Megatron checkpoint to Hugging Face Mixtral, logits compared (pipeline/stages/convert.py).


rule convert_job:
    input:
        inputs_of("convert"),
    output:
        update("results/{scale}/{point}/convert/record.json"),
    log:
        "logs/{scale}/{point}/convert.log",
    priority: 40
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("convert", "mem_mb"),
        runtime=need("convert", "runtime"),
    shell:
        "python -m pipeline.stages.convert --scale {wildcards.scale} --point {wildcards.point}"
        " &>> {log}"


# The same for intermediate checkpoints (pretrain.keep).
rule convert_step_job:
    input:
        inputs_of("convert"),
    output:
        update("results/{scale}/{point}/convert/{variant}/record.json"),
    log:
        "logs/{scale}/{point}/convert/{variant}.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("convert", "mem_mb"),
        runtime=need("convert", "runtime"),
    shell:
        "python -m pipeline.stages.convert --scale {wildcards.scale} --point {wildcards.point} --variant {wildcards.variant}"
        " &>> {log}"
