#!/usr/bin/env bash
# Snakemake runs this in the folder of the workflow, inside the new conda environment.
set -euo pipefail
bash workflow/envs/install.sh cuda
