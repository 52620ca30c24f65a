"""The project's configuration as data that a test may change and write."""

import json
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.scales import read_grid

CONFIG = Path(__file__).parents[2] / "config"


def whole_grid(path: Path = CONFIG / "grid.yaml") -> dict[str, Any]:
    """A grid file and what it includes, in one, as plain data."""
    data: dict[str, Any] = json.loads(json.dumps(read_grid(path)))
    return data


def dump(data: Any) -> str:
    """Data as YAML: `yaml.safe_dump` in C, since hundreds of tests write a grid."""
    text: str = yaml.dump(data, Dumper=yaml.CSafeDumper)
    return text
