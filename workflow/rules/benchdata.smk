# Files of one published evaluation data set in hub layout, and the items of its tasks (pipeline/stages/benchdata.py).


rule benchdata_job:
    input:
        inputs_of("benchdata"),
    output:
        update(f"results/{SCALE}/data/{{source}}/benchdata/record.json"),
    log:
        f"logs/{SCALE}/data/{{source}}/benchdata.log",
    localrule: EXPERIMENT.downloads("benchdata")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("benchdata", "mem_mb"),
        runtime=need("benchdata", "runtime"),
    params:
        scale=SCALE,
    shell:
        "python -m pipeline.stages.benchdata --scale {params.scale} --source {wildcards.source}"
        " &>> {log}"
