# One HTML page with all of it (pipeline/stages/report.py).


rule report_job:
    input:
        inputs_of("report"),
    output:
        update(f"results/{SCALE}/report/record.json"),
    log:
        f"logs/{SCALE}/report.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("report", "mem_mb"),
        runtime=need("report", "runtime"),
    params:
        scale=SCALE,
    shell:
        "python -m pipeline.stages.report --scale {params.scale}" " &>> {log}"
