# A finished checkpoint of the hub or of this machine, checked against the point (pipeline/stages/adopt.py). It is made
# where Snakemake runs: on a cluster that is the login node, which has a network.


rule adopt_job:
    input:
        inputs_of("adopt"),
    output:
        update(f"results/{SCALE}/{{point}}/adopt/record.json"),
    log:
        f"logs/{SCALE}/{{point}}/adopt.log",
    priority: 40
    localrule: True
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("adopt", "mem_mb"),
        runtime=need("adopt", "runtime"),
    params:
        scale=SCALE,
    shell:
        "python -m pipeline.stages.adopt --scale {params.scale} --point {wildcards.point}"
        " &>> {log}"
