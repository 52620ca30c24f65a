# Verdicts on the claims of config/claims.yaml, from the table (pipeline/stages/claims.py).


rule claims_job:
    input:
        inputs_of("claims"),
    output:
        update(f"results/{SCALE}/claims/record.json"),
    log:
        f"logs/{SCALE}/claims.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("claims", "mem_mb"),
        runtime=need("claims", "runtime"),
    params:
        scale=SCALE,
    shell:
        "python -m pipeline.stages.claims --scale {params.scale}" " &>> {log}"
