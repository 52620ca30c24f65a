"""The recipes of docs/howto/new-*.md, done to a copy of the repository as a reader would do them.

A fenced block of `diff` is applied as a patch; one of Python or YAML whose first line is a comment with a path
("# pipeline/stages/top1.py") is a new file.
"""

import re
import subprocess
from pathlib import Path

from tests.helpers.repository import ROOT

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEW_FILE = re.compile(r"# (\S+/\S+\.\w+)\n")


def apply(name: str, folder: Path) -> dict[str, set[str]]:
    """Do the recipe docs/howto/<name>.md to the repository in `folder`.

    Returns:
        The files it adds, and those it changes, relative to the folder: {"added": ..., "changed": ...}.
    """
    touched: dict[str, set[str]] = {"added": set(), "changed": set()}
    for language, text in BLOCK.findall((ROOT / "docs" / "howto" / f"{name}.md").read_text()):
        if language == "diff":
            done = subprocess.run(["git", "apply", "-"], cwd=folder, input=text, capture_output=True, text=True)
            assert done.returncode == 0, f"docs/howto/{name}.md: {done.stderr}\n{text}"
            touched["changed"] |= set(re.findall(r"^\+\+\+ b/(\S+)$", text, re.MULTILINE))
        elif new := NEW_FILE.match(text):
            (folder / new[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / new[1]).write_text(text[new.end() :].lstrip("\n"))
            touched["added"].add(new[1])
    return touched
