# A comparison of several scales (config/studies.yaml), from records only (pipeline/stages/study.py).


rule study_job:
    input:
        inputs_of("study"),
    output:
        update("results/{scale}/study/record.json"),
    log:
        "logs/{scale}/study.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=need("study", "mem_mb"),
        runtime=need("study", "runtime"),
    shell:
        "python -m pipeline.stages.study --scale {wildcards.scale}" " &>> {log}"
