# The scale's tokenizer as a Hugging Face folder (pipeline/stages/tokenizer.py).


rule tokenizer_job:
    input:
        inputs_of("tokenizer"),
    output:
        update("results/{scale}/data/tokenizer/record.json"),
    log:
        "logs/{scale}/data/tokenizer.log",
    localrule: EXPERIMENT.downloads("tokenizer")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("tokenizer", "mem_mb"),
        runtime=need("tokenizer", "runtime"),
    shell:
        "python -m pipeline.stages.tokenizer --scale {wildcards.scale}" " &>> {log}"
