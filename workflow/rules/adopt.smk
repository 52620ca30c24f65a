# A finished checkpoint of the hub or of this machine, checked against the point (pipeline/stages/adopt.py). It is made
# where Snakemake runs: on a cluster that is the login node, which has a network.


rule adopt_job:
    input:
        inputs_of("adopt"),
    output:
        update("results/{scale}/{point}/adopt/record.json"),
    log:
        "logs/{scale}/{point}/adopt.log",
    priority: 40
    localrule: True
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("adopt", "mem_mb"),
        runtime=need("adopt", "runtime"),
    shell:
        "python -m pipeline.stages.adopt --scale {wildcards.scale} --point {wildcards.point}"
        " &>> {log}"
