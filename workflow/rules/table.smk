# The tidy table and the wide one, from records only (pipeline/stages/table.py).


rule table_job:
    input:
        inputs_of("table"),
    output:
        update("results/{scale}/table/record.json"),
    log:
        "logs/{scale}/table.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("table", "mem_mb"),
        runtime=need("table", "runtime"),
    shell:
        "python -m pipeline.stages.table --scale {wildcards.scale}" " &>> {log}"
