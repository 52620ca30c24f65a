# The scale's tokenizer as a Hugging Face folder (pipeline/stages/tokenizer.py).


rule tokenizer_job:
    input:
        inputs_of("tokenizer"),
    output:
        update(f"results/{SCALE}/data/tokenizer/record.json"),
    log:
        f"logs/{SCALE}/data/tokenizer.log",
    localrule: EXPERIMENT.downloads("tokenizer")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("tokenizer", "mem_mb"),
        runtime=need("tokenizer", "runtime"),
    params:
        scale=SCALE,
    shell:
        "python -m pipeline.stages.tokenizer --scale {params.scale}" " &>> {log}"
