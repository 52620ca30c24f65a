# Optimal sparsity of mixture-of-experts language models: the whole experiment as one DAG.
#
#   snakemake --cores 2                          everything, at the scale config/grid.yaml names
#   snakemake --cores 2 --config scale=smoke     another scale
#   snakemake --cores 2 --config scale=studies/problems     a comparison of several scales
#   snakemake --cores 2 pretrain                 one stage, for every point
#   snakemake --cores 2 d32-E4-k2-66K-A47K       every stage, for one point
#
# A stage `x` is done by the rule `x_job` (workflow/rules/x.smk), which runs pipeline/stages/x.py. What its inputs are
# and what identifies its result is computed by pipeline/dag/dag.py.
from snakemake.utils import min_version

min_version("9.27")


include: "workflow/rules/common.smk"
include: "workflow/rules/terminal.smk"
include: "workflow/rules/targets.smk"


rule all:
    default_target: True
    input:
        str(PAGE),
        records(EXPERIMENT.jobs),  # Snakemake does not miss what lies between artifacts that are there


include: "workflow/rules/corpus.smk"
include: "workflow/rules/benchdata.smk"
include: "workflow/rules/tokenizer.smk"
include: "workflow/rules/preflight.smk"
include: "workflow/rules/tokenize.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/convert.smk"
include: "workflow/rules/adopt.smk"
include: "workflow/rules/grpo.smk"
include: "workflow/rules/evaluations.smk"
include: "workflow/rules/table.smk"
include: "workflow/rules/claims.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/study.smk"
