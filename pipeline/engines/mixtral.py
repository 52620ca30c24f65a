"""The layout of a released checkpoint, MixtralForCausalLM as transformers saves it, held against a grid point.

Only headers are read, never weights, so that a checkpoint of 100 GB is compared in seconds.
"""

import json
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.grid import Point

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
ARCHITECTURE = "MixtralForCausalLM"
FLOATS = {"F32", "BF16", "F16"}
SHOWN = 8  # differing tensors named, of possibly thousands

Shapes = dict[str, list[int]]
Difference = tuple[str, Any, Any]  # field, what the point says, what the checkpoint has


def point_config(point: Point) -> dict[str, Any]:
    """The fields of config.json that make the function the model computes, as the point wants them."""
    m = point.model
    return {
        "hidden_size": point.hidden,
        "intermediate_size": point.ffn,
        "num_local_experts": point.experts,
        "num_experts_per_tok": point.topk,
        "num_hidden_layers": m.layers,
        "num_attention_heads": point.heads,
        "num_key_value_heads": point.heads,
        "head_dim": m.head_size,
        "vocab_size": m.vocab_size,
        "max_position_embeddings": m.sequence_length,
        "rope_theta": m.rope_theta,
        "rope_type": "default",
        "rms_norm_eps": m.norm_eps,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "sliding_window": None,
    }


def point_tensors(point: Point) -> Shapes:
    """Every tensor of the point's checkpoint and its shape; w1 is an expert's gate, w3 its up, w2 its down."""
    d, f, v = point.hidden, point.ffn, point.model.vocab_size
    shapes = {"model.embed_tokens.weight": [v, d], "model.norm.weight": [d], "lm_head.weight": [v, d]}
    for i in range(point.model.layers):
        layer, moe = f"model.layers.{i}.", f"model.layers.{i}.block_sparse_moe."
        shapes |= {f"{layer}{norm}_layernorm.weight": [d] for norm in ("input", "post_attention")}
        shapes |= {f"{layer}self_attn.{name}_proj.weight": [d, d] for name in "qkvo"}
        shapes[f"{moe}gate.weight"] = [point.experts, d]
        for e in range(point.experts):
            sizes = {"w1": [f, d], "w2": [d, f], "w3": [f, d]}
            shapes |= {f"{moe}experts.{e}.{name}.weight": size for name, size in sizes.items()}
    return shapes


# ------------------------------------------------------------------------------------------------ the checkpoint


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
        if (folder / name).exists() and (found := read_json(folder / name).get("auto_map")):
            raise PipelineError(
                f"{name}: `auto_map` names code that comes with the checkpoint ({found}); adopted checkpoints are read "
                f"by transformers' and vLLM's own {ARCHITECTURE}, and remote code is never run"
            )


def config_differences(point: Point, folder: Path) -> list[Difference]:
    """Where config.json, as transformers reads it, is not the point's."""
    raw = read_json(folder / CONFIG)
    found: list[Difference] = []
    if raw.get("architectures") != [ARCHITECTURE]:
        found.append(("architectures", [ARCHITECTURE], raw.get("architectures")))
    if raw.get("model_type") != "mixtral":
        found.append(("model_type", "mixtral", raw.get("model_type")))
    if raw.get("quantization_config"):
        found.append(("quantization_config", None, raw["quantization_config"]))
    if found:
        return found
    from transformers import MixtralConfig

    try:
        config = MixtralConfig.from_dict(raw)
    except Exception as error:  # transformers raises whatever its checks of a field do
        raise PipelineError(f"{CONFIG}: transformers cannot read it: {error}") from None
    rope = config.rope_parameters
    values = {name: getattr(config, name, None) for name in point_config(point)}
    values |= {"rope_theta": rope.get("rope_theta"), "rope_type": rope.get("rope_type")}
    if values["head_dim"] is None:
        values["head_dim"] = config.hidden_size // config.num_attention_heads
    return [(name, wanted, values[name]) for name, wanted in point_config(point).items() if values[name] != wanted]


def weight_files(folder: Path, names: Iterable[str]) -> list[str]:
    """The files of the checkpoint's weights, from its index if it has one.

    Args:
        folder: holds the index, if the checkpoint has one; weights need not be there yet.
        names: all files of the checkpoint.

    Raises:
        PipelineError: no weights as safetensors, or an index of files that the checkpoint does not have.
    """
    there = set(names)
    if INDEX in there:
        listed = read_json(folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise PipelineError(f"{INDEX}: has no `weight_map`")
        files = sorted(set(map(str, listed.values())))
        if missing := [name for name in files if name not in there or not name.endswith(".safetensors")]:
            raise PipelineError(f"{INDEX}: names files that the checkpoint does not have: {', '.join(missing)}")
        return files
    if SINGLE in there:
        return [SINGLE]
    if pickled := sorted(name for name in there if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))):
        raise PipelineError(
            f"{', '.join(pickled[:3])}: pickled weights, and loading a pickle runs whatever code it holds; only "
            f"safetensors are adopted. Someone who trusts the files can load them with transformers and save them "
            f"again with save_pretrained, which writes safetensors"
        )
    raise PipelineError(f"neither {SINGLE} nor {INDEX} is among its files: {', '.join(sorted(there)) or 'none'}")


def read_headers(folder: Path, files: Iterable[str]) -> tuple[Shapes, set[str]]:
    """Shapes of all tensors of safetensors files, and their number types.

    Raises:
        PipelineError: a truncated or damaged file, a tensor that is there twice, or one that is not where the index
            says.
    """
    from safetensors import SafetensorError, safe_open

    where: dict[str, str] = {}
    shapes, types = {}, set()
    for name in files:
        try:
            with safe_open(folder / name, framework="np") as file:
                for key in file.keys():  # noqa: SIM118 (not a mapping)
                    if key in where:
                        raise PipelineError(f"{name}: has tensor '{key}', which {where[key]} has too")
                    part = file.get_slice(key)
                    where[key], shapes[key] = name, list(part.get_shape())
                    types.add(str(part.get_dtype()))
        except (SafetensorError, OSError) as error:
            raise PipelineError(f"{name}: truncated or damaged ({error}); fetch it again") from None
    if (folder / INDEX).exists():
        listed = read_json(folder / INDEX)["weight_map"]
        if wrong := sorted(key for key in listed.keys() | where.keys() if listed.get(key) != where.get(key)):
            says, found = (places.get(wrong[0], "none of its files") for places in (listed, where))
            raise PipelineError(
                f"{INDEX}: says '{wrong[0]}' is in {says}, but it is in {found} ({len(wrong)} such tensors)"
            )
    return shapes, types


def tensor_differences(point: Point, shapes: Shapes, types: set[str]) -> list[Difference]:
    """Where the tensors are not the point's: their total, then the first that are missing, too many or misshapen."""
    wanted = point_tensors(point)
    found: list[Difference] = []
    if (total := sum(map(prod, shapes.values()))) != point.total_params:
        found.append(("parameters", f"{point.total_params:,}", f"{total:,}"))
    if strange := sorted(types - FLOATS):
        found.append(("number types", "/".join(sorted(FLOATS)), "/".join(strange)))
    wrong = [name for name in wanted | shapes if wanted.get(name) != shapes.get(name)]
    found += [(name, wanted.get(name, "no such tensor"), shapes.get(name, "no such tensor")) for name in wrong[:SHOWN]]
    if len(wrong) > SHOWN:
        found.append((f"and {len(wrong) - SHOWN} more tensors", "", ""))
    return found


def refuse(what: str, point: Point, differences: list[Difference]) -> None:
    """Raise with a table of the differences, if there are any.

    Args:
        what: the part of the checkpoint that was compared.
    """
    if not differences:
        return
    lines = [("", "point says", "checkpoint has"), *((name, str(a), str(b)) for name, a, b in differences)]
    widths = [max(len(line[i]) for line in lines) for i in (0, 1)]
    table = "\n".join(f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in lines)
    raise PipelineError(f"{what} is not that of point {point.name}:\n{table}")
