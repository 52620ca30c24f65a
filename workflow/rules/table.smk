# The tidy table and the wide one, from records only (pipeline/stages/table.py).


rule table_job:
    input:
        inputs_of("table"),
    output:
        update(f"results/{SCALE}/table/record.json"),
    log:
        f"logs/{SCALE}/table.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("table", "mem_mb"),
        runtime=need("table", "runtime"),
    params:
        scale=SCALE,
    shell:
        "python -m pipeline.stages.table --scale {params.scale}" " &>> {log}"
