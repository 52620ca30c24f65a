# Files of one published evaluation data set in hub layout, and the items of its tasks (pipeline/stages/benchdata.py).


rule benchdata_job:
    input:
        inputs_of("benchdata"),
    output:
        update("results/{scale}/data/{source}/benchdata/record.json"),
    log:
        "logs/{scale}/data/{source}/benchdata.log",
    localrule: EXPERIMENT.downloads("benchdata")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("benchdata", "mem_mb"),
        runtime=need("benchdata", "runtime"),
    shell:
        "python -m pipeline.stages.benchdata --scale {wildcards.scale} --source {wildcards.source}"
        " &>> {log}"
