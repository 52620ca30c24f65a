# Text of one source as Parquet documents, and the items of its tasks (pipeline/stages/corpus.py).


rule corpus_job:
    input:
        inputs_of("corpus"),
    output:
        update("results/{scale}/data/{source}/corpus/record.json"),
    log:
        "logs/{scale}/data/{source}/corpus.log",
    localrule: EXPERIMENT.downloads("corpus")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("corpus", "mem_mb"),
        runtime=need("corpus", "runtime"),
    shell:
        "python -m pipeline.stages.corpus --scale {wildcards.scale} --source {wildcards.source}"
        " &>> {log}"
