# Whether the tasks' prompts and answers fit, before anything is trained (pipeline/stages/preflight.py).


rule preflight_job:
    input:
        inputs_of("preflight"),
    output:
        update("results/{scale}/preflight/record.json"),
    log:
        "logs/{scale}/preflight.log",
    priority: 60
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("preflight", "mem_mb"),
        runtime=need("preflight", "runtime"),
    shell:
        "python -m pipeline.stages.preflight --scale {wildcards.scale}" " &>> {log}"


# The same for a point that adopts a checkpoint with a tokenizer of its own.
rule preflight_point_job:
    input:
        inputs_of("preflight"),
    output:
        update("results/{scale}/{point}/preflight/record.json"),
    log:
        "logs/{scale}/{point}/preflight.log",
    priority: 60
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("preflight", "mem_mb"),
        runtime=need("preflight", "runtime"),
    shell:
        "python -m pipeline.stages.preflight --scale {wildcards.scale} --point {wildcards.point}"
        " &>> {log}"
