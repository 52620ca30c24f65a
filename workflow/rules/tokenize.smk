# Documents to Megatron .bin/.idx (pipeline/stages/tokenize.py).


rule tokenize_job:
    input:
        inputs_of("tokenize"),
    output:
        update("results/{scale}/data/{source}/tokenize/record.json"),
    log:
        "logs/{scale}/data/{source}/tokenize.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("tokenize", "mem_mb"),
        runtime=need("tokenize", "runtime"),
    shell:
        "python -m pipeline.stages.tokenize --scale {wildcards.scale} --source {wildcards.source}"
        " --ranks {threads}"
        " &>> {log}"
