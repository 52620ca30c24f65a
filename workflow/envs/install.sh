#!/usr/bin/env bash
# install.sh cpu|cuda: install the lock into the Python environment that is active. Used by ./run and by conda.
set -euo pipefail
device=$1
envs=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
install=(python -m pip install --quiet --disable-pip-version-check --no-deps)

if [ "$device" = cpu ]; then
    # The CPU build of torch is not on PyPI, so it is named by version and found where pip is told to look.
    if ! "${install[@]}" torch==2.13.0+cpu; then
        cat >&2 <<'MESSAGE'
error: pip found no CPU build of torch 2.13.0. Tell it where one is, and run the same command again:
  PIP_EXTRA_INDEX_URL   PyTorch's package index for CPU builds (pytorch.org, "Get started", Compute platform: CPU), or
  PIP_FIND_LINKS        a folder with the wheel torch-2.13.0+cpu-cp311-...whl
MESSAGE
        exit 1
    fi
fi
"${install[@]}" --require-hashes -r "$envs/$device.lock"
if [ "$device" = cpu ]; then
    "${install[@]}" --no-build-isolation "$envs/vllm-cpu-name"
fi
"${install[@]}" --no-build-isolation --editable "$envs/../.."
