"""Adopt: a finished checkpoint, of the hub or of this machine, in place of pre-training and conversion.

    python -m pipeline.stages.adopt --scale math-released --point d512-E8-k2-320M-A170M

For the 65 checkpoints released with the paper, or any folder in their layout (MixtralForCausalLM as transformers saves
it). A download is a login node's job, and continues file by file; every file is compared with the hub's digest. A
folder is copied, sharing blocks where the file system can, and never linked: a later save into it would change the
artifact.

Nothing is published unless the files have the digests that the grid file gives (`adopt.sha256`), the configuration is
the point's, the tensors are those of the point by name and shape and hold finite numbers, and the tokenizer fits.
Weights are taken as safetensors only, and code that comes with a checkpoint is never run.

Publishes the checkpoint's files as they are (but for truncation and the like in its tokenizer.json, which are taken
out), and a chat template that passes text through if it has none. The record
holds where they came from (`origin`, `commit`), all digests, and what could not be made sure of (`warnings`).
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from pipeline.artifact import RECORD, RECORD_COPY, sha256_file
from pipeline.config import Adopt
from pipeline.engines import mixtral, tokenizer_files
from pipeline.engines.chat import pass_through
from pipeline.engines.hub_model import HubModel
from pipeline.engines.weights import refuse_nonfinite
from pipeline.errors import PipelineError
from pipeline.stage import Context, main

TOKENIZER = {
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
}
OTHERS = {mixtral.CONFIG, mixtral.INDEX, "generation_config.json", "README.md", "LICENSE"}
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
        left = os.fstat(old.fileno()).st_size
        try:
            while left > 0 and (done := os.copy_file_range(old.fileno(), new.fileno(), left)):
                left -= done
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
    wanted = OTHERS | (TOKENIZER if adopt.tokenizer == "checkpoint" else set())
    small = sorted(wanted.intersection(origin.names))
    origin.take(small, out)
    mixtral.refuse_remote_code(out)
    mixtral.refuse(mixtral.CONFIG, point, mixtral.config_differences(point, out))
    weights = mixtral.weight_files(out, origin.names)
    origin.take(weights, out)
    check_digests(adopt, out)
    shapes, types = mixtral.read_headers(out, weights)
    mixtral.refuse("the set of tensors", point, mixtral.tensor_differences(point, shapes, types))
    refuse_nonfinite(out, "fetch it again; if its source is so too, it cannot be used", lambda path: path.name)
    left = [name for name in origin.names if name.endswith(".safetensors") and name not in weights]
    warnings = [f"left out, since {mixtral.INDEX} does not name them: {', '.join(left)}"] if left else []
    dtype = "/".join(sorted(types))
    ctx.say(f"{point.total_params:,} parameters in {len(weights)} files, {dtype}, as the point wants them")
    return {"parameters": point.total_params, "dtype": dtype}, warnings


def check_digests(adopt: Adopt, folder: Path) -> None:
    """Compare files with the digests that the grid file gives."""
    for name, wanted in sorted(adopt.sha256.items()):
        if not (folder / name).exists():
            raise PipelineError(f"{name}: adopt.sha256 has a digest of it, but it is not a file that is adopted")
        if (found := sha256_file(folder / name)) != wanted:
            raise PipelineError(
                f"{name}: SHA-256 wanted {wanted} (adopt.sha256), found {found}; either the file is damaged or it is "
                f"another one than the grid file means"
            )


def check_tokenizer(ctx: Context, adopt: Adopt, warnings: list[str]) -> dict[str, Any]:
    """Put the scale's tokenizer into the checkpoint where that is asked for; see that it can be used, adding a chat
    template if there is none. Appends to `warnings`."""
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
    if taken_out := tokenizer_files.take_out_settings(data):
        (out / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        warnings.append(f"taken out of its tokenizer.json, with which tokens would be others: {', '.join(taken_out)}")
    if (size := tokenizer_files.size(data)) > rows:
        raise PipelineError(f"its tokenizer needs {size} rows, more than model.vocab_size {rows}")
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer(SAMPLE)["input_ids"]
    adds_bos = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    if ids != tokenizer_files.load(data, "tokenizer.json").encode(SAMPLE).ids:
        warnings.append("transformers cuts text into other tokens than tokenizer.json alone does")
    end = mixtral.read_json(out / mixtral.CONFIG).get("eos_token_id")
    if end not in (tokenizer.eos_token_id, [tokenizer.eos_token_id]):
        warnings.append(f"{mixtral.CONFIG} ends texts with token {end}, the tokenizer with {tokenizer.eos_token_id}")
    if tokenizer.chat_template is None:
        (out / "chat_template.jinja").write_text(pass_through(adds_bos))
    source = "the checkpoint's" if adopt.tokenizer == "checkpoint" else f"the scale's ({ctx.scale.data.tokenizer})"
    ctx.say(f"tokenizer: {source}, {size} ids")
    return {"tokenizer": source, "vocab_size": size, "adds_bos": adds_bos}


if __name__ == "__main__":
    main("adopt", run, __doc__)
