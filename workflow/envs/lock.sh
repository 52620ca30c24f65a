#!/usr/bin/env bash
# Remake cpu.lock and cuda.lock from pyproject.toml. Needs `uv`, and for the CPU lock a place with the CPU build of torch
# (UV_FIND_LINKS or UV_EXTRA_INDEX_URL). torch's CPU build is installed by version, without a hash: it does not come
# from PyPI. The CUDA lock comes from PyPI alone.
set -euo pipefail
cd "$(dirname "$0")"
flags=(--quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes --no-annotate
       --no-emit-index-url --no-emit-find-links --extra dev --override overrides.txt)
header="# Made by workflow/envs/lock.sh; do not edit."
cpu=$(uv pip compile "${flags[@]}" --no-header --extra cpu --override cpu-overrides.txt --no-emit-package torch ../../pyproject.toml)
cuda=$(env -u UV_FIND_LINKS -u UV_EXTRA_INDEX_URL uv pip compile "${flags[@]}" --no-header --extra cuda ../../pyproject.toml)
printf '%s\n%s\n' "$header" "$cpu" > cpu.lock
printf '%s\n%s\n' "$header" "$cuda" > cuda.lock
