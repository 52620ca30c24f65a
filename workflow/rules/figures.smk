# Figures of the table (pipeline/stages/figures.py).


rule figures_job:
    input:
        inputs_of("figures"),
    output:
        update(f"results/{SCALE}/figures/record.json"),
    log:
        f"logs/{SCALE}/figures.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("figures", "mem_mb"),
        runtime=need("figures", "runtime"),
    params:
        scale=SCALE,
    shell:
        "python -m pipeline.stages.figures --scale {params.scale}" " &>> {log}"
