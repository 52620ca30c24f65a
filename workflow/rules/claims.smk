# Verdicts on the claims of config/claims.yaml, from the table (pipeline/stages/claims.py).


rule claims_job:
    input:
        inputs_of("claims"),
    output:
        update("results/{scale}/claims/record.json"),
    log:
        "logs/{scale}/claims.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("claims", "mem_mb"),
        runtime=need("claims", "runtime"),
    shell:
        "python -m pipeline.stages.claims --scale {wildcards.scale}" " &>> {log}"
