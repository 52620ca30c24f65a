#!/usr/bin/env bash
# Remake the locks from pyproject.toml, with hashes. Needs `uv`, and for the CPU lock a place with the CPU build of torch
# (UV_FIND_LINKS or UV_EXTRA_INDEX_URL). The others come from PyPI alone.
#   cpu.lock, cuda.lock   everything; of the first, torch's CPU build is not in it: it does not come from PyPI
#   torch-pypi.lock       torch as PyPI has it, with CUDA's libraries, for CPUs where the CPU build cannot be reached
#   uv.lock               uv, which brings Python 3.11 where there is none
set -euo pipefail
cd "$(dirname "$0")"
flags=(--quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes --no-annotate
       --no-emit-index-url --no-emit-find-links)
all=("${flags[@]}" --extra dev --override overrides.txt)
header="# Made by workflow/envs/lock.sh; do not edit."
cpu=$(uv pip compile "${all[@]}" --no-header --extra cpu --override cpu-overrides.txt --no-emit-package torch ../../pyproject.toml)
unset UV_FIND_LINKS UV_EXTRA_INDEX_URL
cuda=$(uv pip compile "${all[@]}" --no-header --extra cuda ../../pyproject.toml)
printf '%s\n%s\n' "$header" "$cpu" > cpu.lock
printf '%s\n%s\n' "$header" "$cuda" > cuda.lock
torch=$(grep -o '^torch==[^ ]*' cuda.lock |
    uv pip compile "${flags[@]}" --no-header --constraint cuda.lock --override cpu-overrides.txt --no-emit-package setuptools -)
uv=$(echo uv | uv pip compile "${flags[@]}" --no-header -)
printf '%s\n%s\n' "$header" "$torch" > torch-pypi.lock
printf '%s\n%s\n' "$header" "$uv" > uv.lock
