"""Check the configuration: every scale, with its points, sources and tasks, is loaded as a run would load it.

`--write` makes anew what is generated from the models of the configuration: the JSON schemas that editors read, and
README.md, the reference of every key.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from pipeline.commands.common import add_config
from pipeline.config.claims import Claims
from pipeline.config.layouts import LayoutFile, Layouts
from pipeline.config.reference import Reference
from pipeline.config.scales import Grid
from pipeline.config.studies import Studies
from pipeline.dag.configuration import Configuration
from pipeline.dag.dag import Dag
from pipeline.dag.stages import those
from pipeline.dag.study import StudyDag
from pipeline.data.registry import Sources

EXTENDS = {"type": "string", "description": "another entry of its kind, of which only differences are given here"}
README = """\
# The configuration

| file | holds |
|---|---|
| `grid.yaml` | the door: the default scale, and which files hold scales |
| `scales/*.yaml` | the scales, one file per family; a scale may `extends:` one of another file |
| `points/*.tsv` | the points of a scale as a table: a line of keys, then one line per point |
| `sources.yaml` | data sets, tokenizers and evaluation data, with origin and licence |
| `claims.yaml` | claims that are tested on the results of every scale (docs/howto/claims.md) |
| `studies.yaml` | comparisons across scales (docs/howto/studies.md) |
| `layouts.yaml` | nodes, GPUs and parallel sizes of jobs on a cluster; changes no number |
| `*.schema.json` | what editors complete and check these files with |

`./run python -m pipeline config` checks all of it. This page is generated from the models that read the files
(`pipeline/config/`, `pipeline/data/`) by `./run python -m pipeline config --write`.

All of it but `layouts.yaml` is identity: a changed value runs anew what it bears on, and nothing else. A scale that
says `extends: other` gives only what differs: mappings are merged, key by key; lists, `sources`, `pinned` and `sha256`
are replaced. Names become folders: letters, digits, `.`, `_` and `-`.
"""


def schemas() -> dict[str, Any]:
    """The JSON schema of each configuration file, by file name: its model's, and what only the files have."""
    grid = Grid.model_json_schema()
    models = grid.pop("$defs")
    scale = models["Scale"]
    scale["properties"]["extends"] = EXTENDS
    points = scale["properties"]["points"]
    table = {"type": "string", "description": "a table of points, relative to config/"}
    scale["properties"]["points"] = {
        "anyOf": [{key: points.pop(key) for key in ("type", "items", "minItems")}, table],
        **points,
    }
    options = [option for key in scale["properties"].values() for option in (key, *key.get("anyOf", []))]
    for section in [scale, *(models[option["$ref"].rpartition("/")[2]] for option in options if "$ref" in option)]:
        section.pop("required", None)  # `extends` may give it
    scales = grid["properties"]["scales"]
    grid["properties"]["scales"] = {"$ref": "scales.schema.json#/properties/scales"}
    layouts = LayoutFile.model_json_schema()
    stages = {stage: {"$ref": "#/$defs/StageLayouts"} for stage in those(laid_out=True)}
    names = next(iter(layouts["patternProperties"]))
    of_scale = {"type": "object", "properties": stages | {"extends": EXTENDS}, "additionalProperties": False}
    layouts["patternProperties"][names] = of_scale
    return {
        "grid.schema.json": grid,
        "scales.schema.json": {
            "$defs": models,
            "title": "Scales",
            "description": "A file that config/grid.yaml includes.",
            "type": "object",
            "properties": {"scales": scales},
            "required": ["scales"],
            "additionalProperties": False,
        },
        "sources.schema.json": Sources.model_json_schema(),
        "claims.schema.json": Claims.model_json_schema(),
        "studies.schema.json": Studies.model_json_schema(),
        "layouts.schema.json": layouts,
    }


def readme() -> str:
    """config/README.md: every key that a user may write."""
    parts = [README]
    files = (
        ("grid.yaml", Grid, ""),
        ("sources.yaml", Sources, ""),
        ("claims.yaml", Claims, ""),
        ("studies.yaml", Studies, ""),
        ("layouts.yaml", LayoutFile, "layouts"),
    )
    for file, model, root in files:
        schema = model.model_json_schema()
        reference = Reference(schema, root)
        parts.append("\n".join([f"## {file}", "", *reference.table(schema)]) + "\n")
        parts += reference.sections()
    return "\n".join(parts)


def generated() -> dict[str, str]:
    """Every generated file of config/, as text, by name."""
    texts = {name: json.dumps(schema, indent=2) + "\n" for name, schema in schemas().items()}
    return texts | {"README.md": readme()}


def run(args: argparse.Namespace) -> int:
    """Write what is generated, if asked to, and check every scale."""
    folder = Path(args.config).parent
    if args.write:
        for name, text in generated().items():
            (folder / name).write_text(text, encoding="utf-8")
    read = Configuration.read(args.config)
    grid, sources, claims, studies = read
    for scale in grid.scales:
        points = Dag(grid, sources, scale, claims).points
        Layouts.load(scale, folder / "layouts.yaml").check(points, those(laid_out=True))
    for study in studies.studies:
        StudyDag.build(read, study)
    counts = f"{len(grid.scales)} scales, {len(sources.datasets)} data sets, {len(sources.tokenizers)} tokenizers"
    print(f"{counts}, {len(claims.claims)} claims, {len(studies.studies)} studies: ok")
    return 0


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("config", help="check the configuration", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_config(parser)
    parser.add_argument("--write", action="store_true", help="write the JSON schemas and README.md")
    parser.set_defaults(func=run)
