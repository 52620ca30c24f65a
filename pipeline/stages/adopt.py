"""Adopt: a finished checkpoint, of the hub or of this machine, in place of pre-training and conversion.

    python -m pipeline.stages.adopt --scale math-released --point d512-E8-k2-320M-A170M

For the 65 checkpoints released with the paper, or any folder in their layout (the point's architecture as transformers
saves it). A download is a login node's job, and continues file by file; every file is compared with the hub's digest. A
folder is copied, sharing blocks where the file system can, and never linked: a later save into it would change the
artifact.

Nothing is published unless the files have the digests that the grid file gives (`adopt.sha256`), the configuration is
the point's, the tensors are those of the point by name and shape and hold finite numbers, and the tokenizer fits.
Weights are taken as safetensors only, and code that comes with a checkpoint is never run.

Publishes the checkpoint's files as they are (but for truncation and the like in its tokenizer.json, which are taken
out), and a chat template that passes text through if it has none. The record holds where they came from (`origin`,
`commit`), all digests, and what could not be verified (`warnings`).
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from pipeline.artifacts.record import RECORD, RECORD_COPY, sha256_file
from pipeline.config.points import Adopt
from pipeline.data import tokenizer_files
from pipeline.data.chat_template import pass_through
from pipeline.data.checkpoints import HubModel
from pipeline.errors import PipelineError
from pipeline.models import released
from pipeline.models.weights import refuse_nonfinite
from pipeline.runner import Context, main

TOKENIZER = {
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
}
OTHERS = {released.CONFIG, released.INDEX, "generation_config.json", "README.md", "LICENSE"}
SAMPLE = "Natalia sold 48/2 = 24 clips in May.\n\nHow many altogether? #### 72\n\tdef f(x): return x  # 日本語"


class Folder:
    """A checkpoint in a folder of this machine."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise PipelineError(f"{path}: no such folder; correct `adopt.path` in the grid file")
        self.name, self._path = str(path), path

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self._path.iterdir() if path.is_file())

    def take(self, names: list[str], out: Path) -> None:
        """Copy files into `out`."""
        for name in names:
            copy(self._path / name, out / name)


def copy(source: Path, target: Path) -> None:
    """Copy a file's content, by the kernel, which shares blocks where the file system can (Btrfs, XFS)."""
    with source.open("rb") as old, target.open("wb") as new:
        remaining = os.fstat(old.fileno()).st_size
        try:
            while remaining > 0 and (done := os.copy_file_range(old.fileno(), new.fileno(), remaining)):
                remaining -= done
        except OSError:  # not between these file systems
            old.seek(0)
            new.seek(0)
            shutil.copyfileobj(old, new, 16 << 20)


def run(ctx: Context) -> dict[str, Any]:
    adopt = ctx.point.adopt
    assert adopt is not None
    origin: HubModel | Folder
    if adopt.repo is not None:
        origin = HubModel(adopt.repo, str(adopt.revision), ctx.state)
    else:
        origin = Folder(Path(str(adopt.path)))
    ctx.say(f"adopting {origin.name}")
    try:
        metrics, warnings = take_weights(ctx, adopt, origin)
        metrics |= check_tokenizer(ctx, adopt, warnings)
    except PipelineError as error:
        raise PipelineError(f"{origin.name}: {str(error).removeprefix(f'{origin.name}: ')}") from None
    if isinstance(origin, HubModel):
        metrics |= {"origin": origin.repo, "commit": origin.commit}
        if origin.commit != adopt.revision:
            warnings.append(f"revision '{adopt.revision}' may move; it was {origin.commit}: give that to pin it")
    else:
        metrics |= {"origin": origin.name, "commit": None}
        if not adopt.sha256:
            warnings.append("a folder without `sha256`: what it held is known by this record's digests only")
    for warning in warnings:
        ctx.say(f"warning: {warning}")
    return metrics | {"warnings": warnings}


def take_weights(ctx: Context, adopt: Adopt, origin: HubModel | Folder) -> tuple[dict[str, Any], list[str]]:
    """Bring the checkpoint's files into `ctx.out`, small ones first, and check all but the tokenizer."""
    point, out = ctx.point, ctx.out
    architecture, shape = point.architecture, point.shape
    taken = OTHERS | (TOKENIZER if adopt.tokenizer == "checkpoint" else set())
    origin.take(sorted(taken.intersection(origin.names)), out)
    released.refuse_remote_code(out)
    released.refuse(released.CONFIG, point.name, released.config_differences(architecture, shape, out))
    weights = released.weight_files(out, origin.names)
    origin.take(weights, out)
    check_digests(adopt, out)
    sizes, types = released.read_headers(out, weights)
    differences = released.tensor_differences(architecture, shape, sizes, types)
    released.refuse("the set of tensors", point.name, differences)
    refuse_nonfinite(out, "fetch it again; if it is the same at its source, it cannot be used", lambda path: path.name)
    left_out = [name for name in origin.names if name.endswith(".safetensors") and name not in weights]
    warnings = [f"left out, since {released.INDEX} does not name them: {', '.join(left_out)}"] if left_out else []
    dtype = "/".join(sorted(types))
    ctx.say(f"{point.total_params:,} parameters in {len(weights)} files, {dtype}: those of the point")
    return {"parameters": point.total_params, "dtype": dtype}, warnings


def check_digests(adopt: Adopt, folder: Path) -> None:
    """Compare files with the digests that the grid file gives."""
    for name, expected in sorted(adopt.sha256.items()):
        if not (folder / name).exists():
            raise PipelineError(f"{name}: adopt.sha256 has a digest of it, but it is not a file that is adopted")
        if (actual := sha256_file(folder / name)) != expected:
            raise PipelineError(
                f"{name}: SHA-256 is {actual}, and adopt.sha256 says {expected}; either the file is damaged, or the "
                f"grid file means another one"
            )


def check_tokenizer(ctx: Context, adopt: Adopt, warnings: list[str]) -> dict[str, Any]:
    """Check the tokenizer, after putting the scale's in its place where the grid file asks for that, and add a chat
    template if there is none.

    Returns:
        What the record says of it. What could not be verified is added to `warnings`.

    Raises:
        PipelineError: no tokenizer.json, or more ids than the embedding has rows.
    """
    from transformers import AutoTokenizer

    out, rows = ctx.out, ctx.point.model.vocab_size
    if adopt.tokenizer == "scale":
        records = shutil.ignore_patterns(RECORD, RECORD_COPY)
        shutil.copytree(ctx.inputs["tokenizer"], out, dirs_exist_ok=True, ignore=records)
    elif not (out / "tokenizer.json").exists():
        raise PipelineError(
            "it has no tokenizer.json; `adopt: {tokenizer: scale}` takes the scale's own (data.tokenizer) in its place"
        )
    data = tokenizer_files.read(out / "tokenizer.json")
    if removed := tokenizer_files.take_out_settings(data):
        (out / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        warnings.append(
            f"taken out of its tokenizer.json, since they change what tokens text becomes: {', '.join(removed)}"
        )
    if (size := tokenizer_files.size(data)) > rows:
        raise PipelineError(f"its tokenizer needs {size} rows, more than model.vocab_size {rows}")
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer(SAMPLE)["input_ids"]
    adds_bos = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    if ids != tokenizer_files.load(data, "tokenizer.json").encode(SAMPLE).ids:
        warnings.append("transformers cuts text into other tokens than tokenizer.json alone does")
    eos = released.read_json(out / released.CONFIG).get("eos_token_id")
    if eos not in (tokenizer.eos_token_id, [tokenizer.eos_token_id]):
        warnings.append(f"{released.CONFIG} ends texts with token {eos}, the tokenizer with {tokenizer.eos_token_id}")
    if tokenizer.chat_template is None:
        (out / "chat_template.jinja").write_text(pass_through(adds_bos))
    source = "the checkpoint's" if adopt.tokenizer == "checkpoint" else f"the scale's ({ctx.scale.data.tokenizer})"
    ctx.say(f"tokenizer: {source}, {size} ids")
    return {"tokenizer": source, "vocab_size": size, "adds_bos": adds_bos}


if __name__ == "__main__":
    main("adopt", run, __doc__)
