# Names to ask for: a stage (all its jobs at this scale), or a point (all its jobs).


# Every rule costs Snakemake time with every job, so of the points only those have one that the command line names.
for name in NAMED:
    if name in STAGES or name in sys.argv:

        rule:
            name:
                name
            input:
                records(NAMED[name]),


# What a scale needs from outside. Its jobs run where Snakemake runs: a cluster's login node, which has a network.
rule fetch:
    input:
        records(EXPERIMENT.fetches),


# Whoever deletes the report's folder to have it made anew leaves a link to nothing, which Snakemake finds there and
# cannot date.
PAGE = Path("results", NAME, "report.html")
if PAGE.is_symlink() and not PAGE.exists():
    PAGE.unlink(missing_ok=True)


rule report:
    input:
        records([EXPERIMENT.page], settled=not SURVEY.unsettled),
    output:
        update(str(PAGE)),
    log:
        f"logs/{NAME}/report.html.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        page=f"{EXPERIMENT.page.folder.name}/report.html",
    shell:
        "[ -L {output} ] || ln -sf {params.page} {output} 2> {log}"


rule plan:
    log:
        f"logs/{NAME}/plan.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        scales=list(EXPERIMENT.dags),
    shell:
        "for scale in {params.scales}; do python -m pipeline plan --scale $scale; done 2>&1 | tee {log}"
