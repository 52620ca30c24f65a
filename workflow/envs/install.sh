#!/usr/bin/env bash
# install.sh cpu|cuda: install the lock into the Python environment that is active. Used by ./run and by conda.
# One line for each step; all that pip says goes to .setup.log.
set -euo pipefail
device=$1
envs=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
log=$envs/../../.setup.log
prefix=$(python -c 'import sys; print(sys.prefix)')
export TMPDIR=$prefix/tmp # the room for what pip unpacks is looked at below; that of /tmp is often small
mkdir -p "$TMPDIR"
trap 'rm -rf "$TMPDIR"' EXIT

stop() {
    echo "error: $*; all that pip said is in .setup.log" >&2
    exit 1
}

room() { # room GB WHAT: stop where there is less
    local free
    [ ! -e "$prefix/bin/snakemake" ] || return 0 # only what changed is installed
    free=$(df -Pk "$prefix" | awk 'NR == 2 { print int($4 * 1024 / 1e9) }')
    [ "$free" -ge "$1" ] ||
        stop "$2 needs $1 GB while it is installed, and $prefix has $free GB: make room, or move the checkout"
}

install() { # pip install; its last words are in $why when it fails
    local said status=0
    said=$(python -m pip install --quiet --disable-pip-version-check --no-input --no-user --no-deps "$@" 2>&1) ||
        status=$?
    [ -z "$said" ] || printf 'pip install %s\n%s\n' "$*" "$said" >> "$log"
    if grep -q '^WARNING: Retrying' <<< "$said"; then
        why="a package index cannot be reached"
    else
        why=$(sed -n 's/^ *\(ERROR\|error\): *//p' <<< "$said" | tail -n 1 | cut -c1-300)
    fi
    return $status
}

install_cpu_torch() { # PyTorch's CPU build is not on PyPI
    local version=2.13.0+cpu index=https://download.pytorch.org/whl/cpu
    if install "torch==$version"; then
        echo "torch $version: the CPU build, from where pip is told to look (0.2 GB)" >&2
    elif install --timeout 20 --retries 2 --index-url "$index" "torch==$version"; then
        echo "torch $version: the CPU build, from $index (0.2 GB)" >&2
    else
        echo "torch $version is not where pip is told to look, nor at $index ($why):" \
            "taking PyPI's CUDA build, with which the environment takes 7.6 GB, not 3.7" >&2
        room 10 "PyPI's torch"
        install --require-hashes -r "$envs/torch-pypi.lock" ||
            stop "no torch to be had: $why. Let pip reach PyPI or $index, or name a place" \
                "(PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS)"
        echo "torch ${version%+cpu}: PyPI's CUDA build, with CUDA's libraries; works on CPUs" >&2
    fi
}

if [ "$device" = cpu ]; then
    room 6 "the environment"
    install_cpu_torch
else
    room 16 "the environment"
fi
echo "all other packages, from $device.lock ($([ "$device" = cpu ] && echo 3 || echo 9.6) GB)" >&2
install --require-hashes -r "$envs/$device.lock" || stop "pip cannot install $device.lock: $why"
if [ "$device" = cpu ]; then
    install --no-build-isolation "$envs/vllm-cpu-name" || stop "pip cannot install vllm-cpu-name: $why"
fi
install --no-build-isolation --editable "$envs/../.." || stop "pip cannot install the project itself: $why"
# Where the path has a space, pip's scripts name their Python in double quotes, and a quote or dollar in it breaks them.
{ grep -lsZ "^'''exec' " "$prefix"/bin/* || true; } |
    xargs -r0 sed -i "2s|^'''exec' .*|'''exec' \"\$(dirname \"\$0\")/python\" \"\$0\" \"\$@\"|"
python -c 'import torch, snakemake, pipeline' 2>> "$log" ||
    stop "the environment was installed and does not work: $(tail -n 1 "$log")"
