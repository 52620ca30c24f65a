# One HTML page with all of it (pipeline/stages/report.py).


rule report_job:
    input:
        inputs_of("report"),
    output:
        update("results/{scale}/report/record.json"),
    log:
        "logs/{scale}/report.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("report", "mem_mb"),
        runtime=need("report", "runtime"),
    shell:
        "python -m pipeline.stages.report --scale {wildcards.scale}" " &>> {log}"
