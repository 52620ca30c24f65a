"""Somebody else's checkpoint, in the layout in which transformers saves, compared with what an architecture states.

Only headers are read, never weights, so that a checkpoint of 100 GB is compared in seconds.
"""

import json
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.models import Architecture
from pipeline.models.shape import Shape, Sizes

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
FLOATS = {"F32", "BF16", "F16"}
SHOWN = 8  # differing tensors that a message names, of possibly thousands

Difference = tuple[str, Any, Any]  # field, what the point says, what the checkpoint has


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping."""
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise PipelineError(f"{path.name}: the checkpoint has no such file") from None
    except ValueError as error:
        raise PipelineError(f"{path.name}: not JSON ({error})") from None
    if not isinstance(data, dict):
        raise PipelineError(f"{path.name}: not a mapping")
    return data


def refuse_remote_code(folder: Path) -> None:
    """Refuse a checkpoint that brings its own Python code, which no stage runs."""
    for name in (CONFIG, "tokenizer_config.json"):
        if (folder / name).exists() and (code := read_json(folder / name).get("auto_map")):
            raise PipelineError(
                f"{name}: `auto_map` names code that comes with the checkpoint ({code}); adopted checkpoints are read "
                f"by transformers' and vLLM's own classes, and remote code is never run"
            )


def config_differences(architecture: Architecture, shape: Shape, folder: Path) -> list[Difference]:
    """Where config.json, as transformers reads it, does not describe the model of that shape.

    Raises:
        PipelineError: config.json is missing, or transformers cannot read it.
    """
    raw = read_json(folder / CONFIG)
    kind = {"architectures": [architecture.HF_CLASS], "model_type": architecture.HF_TYPE, "quantization_config": None}
    if differences := [(key, value, raw.get(key)) for key, value in kind.items() if (raw.get(key) or None) != value]:
        return differences
    from transformers import CONFIG_MAPPING

    try:
        config = CONFIG_MAPPING[architecture.HF_TYPE].from_dict(raw)
    except Exception as error:  # transformers raises whatever its checks of a field do
        raise PipelineError(f"{CONFIG}: transformers cannot read it: {error}") from None
    if getattr(config, "head_dim", 0) is None:  # the older way to leave it to be concluded
        config.head_dim = config.hidden_size // config.num_attention_heads
    return list(_differing_fields(architecture.hf_config(shape), config))


def _differing_fields(expected: dict[str, Any], config: Any) -> Iterator[Difference]:
    """Fields of a configuration whose values are others; of mappings among them, their fields."""
    for name, value in expected.items():
        actual = config.get(name) if isinstance(config, dict) else getattr(config, name, None)
        if isinstance(value, dict):
            yield from _differing_fields(value, actual or {})
        elif actual != value:
            yield name, value, actual


def weight_files(folder: Path, names: Iterable[str]) -> list[str]:
    """The files of the checkpoint's weights, from its index if it has one.

    Args:
        folder: holds the index, if the checkpoint has one; weights need not be there yet.
        names: all files of the checkpoint.

    Raises:
        PipelineError: no weights as safetensors, or an index of files that the checkpoint does not have.
    """
    available = set(names)
    if INDEX in available:
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise PipelineError(f"{INDEX}: has no `weight_map`")
        files = sorted(set(map(str, weight_map.values())))
        if missing := [name for name in files if name not in available or not name.endswith(".safetensors")]:
            raise PipelineError(f"{INDEX}: names files that the checkpoint does not have: {', '.join(missing)}")
        return files
    if SINGLE in available:
        return [SINGLE]
    if pickled := sorted(name for name in available if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))):
        raise PipelineError(
            f"{', '.join(pickled[:3])}: pickled weights, and loading a pickle runs whatever code it holds; only "
            f"safetensors are adopted. Someone who trusts the files can load them with transformers and save them "
            f"again with save_pretrained, which writes safetensors"
        )
    raise PipelineError(f"neither {SINGLE} nor {INDEX} is among its files: {', '.join(sorted(available)) or 'none'}")


def read_headers(folder: Path, files: Iterable[str]) -> tuple[Sizes, set[str]]:
    """Sizes of all tensors of safetensors files, and their number types.

    Raises:
        PipelineError: a truncated or damaged file, a tensor that two files have, or one that is not in the file that
            the index says.
    """
    from safetensors import SafetensorError, safe_open

    file_of: dict[str, str] = {}
    sizes, types = {}, set()
    for name in files:
        try:
            with safe_open(folder / name, framework="np") as file:
                for key in file.keys():  # noqa: SIM118 (not a mapping)
                    if key in file_of:
                        raise PipelineError(f"{name}: has tensor '{key}', which {file_of[key]} has too")
                    tensor = file.get_slice(key)
                    file_of[key], sizes[key] = name, list(tensor.get_shape())
                    types.add(str(tensor.get_dtype()))
        except (SafetensorError, OSError) as error:
            raise PipelineError(f"{name}: truncated or damaged ({error}); fetch it again") from None
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX)["weight_map"]
        if misplaced := sorted(key for key in index.keys() | file_of.keys() if index.get(key) != file_of.get(key)):
            says, actual = (places.get(misplaced[0], "none of its files") for places in (index, file_of))
            raise PipelineError(
                f"{INDEX}: says '{misplaced[0]}' is in {says}, but it is in {actual} ({len(misplaced)} such tensors)"
            )
    return sizes, types


def tensor_differences(architecture: Architecture, shape: Shape, sizes: Sizes, types: set[str]) -> list[Difference]:
    """Where a checkpoint's tensors are not those of the shape: first how many parameters they hold, then the first
    tensors that are missing, superfluous or of other sizes."""
    expected, total = architecture.hf_tensors(shape), architecture.total_params(shape)
    differences: list[Difference] = []
    if (actual_total := sum(map(prod, sizes.values()))) != total:
        differences.append(("parameters", f"{total:,}", f"{actual_total:,}"))
    if others := sorted(types - FLOATS):
        differences.append(("number types", "/".join(sorted(FLOATS)), "/".join(others)))
    wrong = [name for name in expected | sizes if expected.get(name) != sizes.get(name)]
    none = "no such tensor"
    differences += [(name, expected.get(name, none), sizes.get(name, none)) for name in wrong[:SHOWN]]
    if len(wrong) > SHOWN:
        differences.append((f"and {len(wrong) - SHOWN} more tensors", "", ""))
    return differences


def refuse(part: str, point: str, differences: list[Difference]) -> None:
    """Raise with a table of the differences, if there are any.

    Args:
        part: of the checkpoint, that was compared.
        point: its name.
    """
    if not differences:
        return
    lines = [("", "point says", "checkpoint has"), *((name, str(a), str(b)) for name, a, b in differences)]
    widths = [max(len(line[i]) for line in lines) for i in (0, 1)]
    table = "\n".join(f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in lines)
    raise PipelineError(f"{part} is not that of point {point}:\n{table}")
