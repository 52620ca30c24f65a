# Figures of the table (pipeline/stages/figures.py).


rule figures_job:
    input:
        inputs_of("figures"),
    output:
        update("results/{scale}/figures/record.json"),
    log:
        "logs/{scale}/figures.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("figures", "mem_mb"),
        runtime=need("figures", "runtime"),
    shell:
        "python -m pipeline.stages.figures --scale {wildcards.scale}" " &>> {log}"
