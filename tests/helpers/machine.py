"""A machine of stand-ins on which ./run is tried: its Pythons, pip, uv and package indices."""

import re
import shutil
import subprocess
from pathlib import Path

from tests.helpers.repository import ROOT

NAME = "実験 (v2) it's"  # of the checkout's folder
TOOLS = (
    "bash env readlink dirname uname cat sha256sum cut flock timeout grep sed awk df head tail mkdir rm xargs sleep cp "
    "chmod echo true sh"
)
# Stands for a Python 3.11 on the PATH, the Python of the environment it makes, and their pip. FAKE_FAIL is a pattern of
# calls that fail, FAKE_SLOW of calls that take long.
PYTHON = r"""#!/usr/bin/env bash
echo "$*" >> "$CALLS"
if [ -n "${FAKE_SLOW:-}" ] && grep -qE -- "$FAKE_SLOW" <<< "$*"; then sleep "${FAKE_SECONDS:-1}"; fi
if [ -n "${FAKE_FAIL:-}" ] && grep -qE -- "$FAKE_FAIL" <<< "$*"; then
    words=${FAKE_WORDS:-ERROR: No matching distribution found}
    printf 'Traceback (most recent call last):\n  many lines\n%s\n' "$words" >&2
    exit 1
fi
case "$*" in
    *ensurepip*) readlink -f "$0" ;;
    *sys.prefix*) dirname "$(dirname "$0")" ;;
    *"-m venv"*) rm -rf "${!#}"; mkdir -p "${!#}/bin"; cp "$0" "${!#}/bin/python" ;;
    *"--target"*uv.lock*)
        while [ "$1" != --target ]; do shift; done
        mkdir -p "$2/bin"; cp "$FAKE_UV" "$2/bin/uv" ;;
esac
"""
UV = r"""#!/usr/bin/env bash
echo "uv $*" >> "$CALLS"
if [ -n "${FAKE_UV_FAILS:-}" ]; then
    printf 'error: Failed to install cpython\n  cause: Request failed\n  cause: no such host\n\nhint: look\n' >&2
    exit 1
fi
mkdir -p "$UV_PYTHON_INSTALL_DIR/cpython-3.11.9-linux-x86_64-gnu/bin"
cp "$FAKE_PYTHON" "$UV_PYTHON_INSTALL_DIR/cpython-3.11.9-linux-x86_64-gnu/bin/python3.11"
"""
OLD_PYTHON = PYTHON.replace("*ensurepip*) readlink", "*ensurepip*) exit 1 ; readlink")  # 3.12, say


class Machine:
    """A checkout and a PATH on which lies nothing but what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.calls = folder / NAME, folder / "bin", folder / "calls"
        (self.folder / "workflow").mkdir(parents=True)
        self.bin.mkdir()
        shutil.copytree(ROOT / "workflow" / "envs", self.folder / "workflow" / "envs")
        for name in ("run", "pyproject.toml"):
            shutil.copy(ROOT / name, self.folder / name)
        for name in TOOLS.split():
            (self.bin / name).symlink_to(shutil.which(name) or name)
        self.env = {"PATH": str(self.bin), "HOME": str(folder), "CALLS": str(self.calls)}
        for name, text in (("FAKE_PYTHON", PYTHON), ("FAKE_UV", UV)):
            self.env[name] = str(self.put(folder / name, text))

    def put(self, where: Path | str, text: str) -> Path:
        """An executable; a bare name lies on the PATH."""
        path = self.bin / where
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def start(self, *command: str, **env: str) -> subprocess.Popen[str]:
        """Start ./run in a process group of its own."""
        pipe = subprocess.PIPE
        environment = self.env | env
        full = [str(self.folder / "run"), *command]
        return subprocess.Popen(full, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run ./run."""
        process = self.start(*command, **env)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def asked(self, pattern: str) -> list[str]:
        """The calls of python, pip and uv that match, since this was last asked."""
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [call for call in calls if re.search(pattern, call)]

    def forget(self) -> None:
        self.calls.unlink(missing_ok=True)


def error(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a refused set-up ends with."""
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and "Traceback" not in done.stderr and "unbound" not in done.stderr, done.stderr
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], done.stderr
    return lines[-1]
