# Documents to Megatron .bin/.idx (pipeline/stages/tokenize.py).


rule tokenize_job:
    input:
        inputs_of("tokenize"),
    output:
        update(f"results/{SCALE}/data/{{source}}/tokenize/record.json"),
    log:
        f"logs/{SCALE}/data/{{source}}/tokenize.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("tokenize", "mem_mb"),
        runtime=need("tokenize", "runtime"),
    params:
        scale=SCALE,
    shell:
        "python -m pipeline.stages.tokenize --scale {params.scale} --source {wildcards.source}"
        " --ranks {threads}"
        " &>> {log}"
