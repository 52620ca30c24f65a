# Names to ask for: a stage (all its jobs at this scale), or a point (all its jobs).


for stage in dict.fromkeys(
    one.stage for one in EXPERIMENT.jobs if one.stage != "report"
):

    rule:
        name:
            stage
        input:
            records(EXPERIMENT.of(stage)),


for point in EXPERIMENT.points:

    rule:
        name:
            point
        input:
            records([one for one in EXPERIMENT.jobs if one.point == point]),


# What a scale needs from outside. Its jobs run where Snakemake runs: a cluster's login node, which has a network.
rule fetch:
    input:
        records(EXPERIMENT.fetches),


# Whoever deletes the report's folder to have it made anew leaves a link to nothing, which Snakemake finds there and
# cannot date.
page = Path(f"results/{SCALE}/report.html")
if page.is_symlink() and not page.exists():
    page.unlink(missing_ok=True)


rule report:
    input:
        records(EXPERIMENT.of("report"), settled=not SURVEY.unsettled),
    output:
        update(f"results/{SCALE}/report.html"),
    log:
        f"logs/{SCALE}/report.html.log",
    localrule: True
    conda:
        ENVIRONMENT
    shell:
        "[ -L {output} ] || ln -sf report/report.html {output} 2> {log}"


rule plan:
    log:
        f"logs/{SCALE}/plan.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        scale=SCALE,
    shell:
        "python -m pipeline plan --scale {params.scale} 2>&1 | tee {log}"
