"""Tokenizer: the one tokenizer of a scale, as a Hugging Face folder that travels with every checkpoint.

    python -m pipeline.stages.tokenizer --scale mini

`kind: words` trains a closed-vocabulary word-level tokenizer on the scale's corpora; `kind: file` takes a
tokenizer.json, or a SentencePiece .model, with which corpora are then tokenised (about six times faster for the
paper's tokenizer, and exact; docs/VALIDATION.md). A .model that comes alone is converted; `tokenize` counts what the
conversion splits differently. Files that are not there are downloaded from the entry's `urls`. What a tokenizer.json
carries for inference or training (truncation, padding, dropout) is taken out and named in the record; its
post-processor is replaced.

The chat template passes text through (with the beginning-of-text token, if the tokenizer adds one), since base models
know no roles.

Out: tokenizer.json, tokenizer_config.json, chat_template.jinja; tokenizer.model if there is one.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.record import sha256_file
from pipeline.data import sentencepiece, tokenizer_files
from pipeline.data.chat_template import pass_through
from pipeline.data.documents import read_groups, shards
from pipeline.data.download import download
from pipeline.data.registry import FileTokenizer, WordTokenizer
from pipeline.data.results import TokenizerMetrics
from pipeline.errors import PipelineError
from pipeline.runner import Context, main

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EOD, UNKNOWN = "<|eod|>", "<|unk|>"


def train_words(corpora: list[Path]) -> "Tokenizer":
    """A word-level tokenizer whose vocabulary is every word of the corpora, most frequent first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    def texts() -> Iterator[list[str]]:
        for corpus in corpora:
            for shard in shards(corpus):
                yield from read_groups(shard)

    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=[EOD, UNKNOWN], show_progress=False, vocab_size=1 << 20)
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def read_file(config: FileTokenizer, name: str) -> tuple["Tokenizer", list[str]]:
    """The tokenizer a user named, and the settings that were taken out of its file.

    Its files are fetched if need be, checked against their digests and against each other, and converted if there is no
    json.
    """
    for path in config.files:
        expected = config.sha256.get(path.name)
        if not path.is_file():
            if path.name not in config.urls:
                raise PipelineError(f"{path}: no such tokenizer file; correct it in config/sources.yaml")
            path.parent.mkdir(parents=True, exist_ok=True)
            download(config.urls[path.name], path, expected)
        elif expected and sha256_file(path) != expected:
            raise PipelineError(f"{path}: its SHA-256 is not the one in config/sources.yaml; fetch the file again")
    if config.json_file is None:
        assert config.model_file is not None
        data = json.loads(sentencepiece.convert(Path(config.model_file)).to_str())
    else:
        data = tokenizer_files.read(Path(config.json_file))
        tokenizer_files.load(data, config.json_file)
    taken_out = tokenizer_files.take_out_settings(data)
    tokens = {key: token for key, token in (("eod", config.eod), ("bos", config.bos)) if token is not None}
    for key, token in tokens.items():
        tokenizer_files.make_special(data, token, key, name)
    if config.model_file is not None:
        for control in tokenizer_files.check_agreement(data, Path(config.model_file), tokens, name):
            tokenizer_files.make_special(data, control, "control token", name)
    return tokenizer_files.load(data, name), taken_out


def run(ctx: Context) -> dict[str, Any]:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    config, name = ctx.dag.tokenizer, f"tokenizer '{ctx.scale.data.tokenizer}'"
    taken_out: list[str] = []
    if isinstance(config, WordTokenizer):
        tokenizer, eod, bos = train_words(list(ctx.inputs.values())), EOD, EOD
    else:
        tokenizer, taken_out = read_file(config, name)
        eod, bos = config.eod, config.bos or config.eod
        if config.model_file:
            shutil.copyfile(config.model_file, ctx.out / "tokenizer.model")
    size, rows = tokenizer_files.size(json.loads(tokenizer.to_str())), ctx.scale.model.vocab_size
    if size > rows:
        raise PipelineError(
            f"{name} needs {size} rows (its largest id plus one), more than model.vocab_size {rows} of scale "
            f"'{ctx.job.scale}'; raise it to a multiple of 128 of at least {size}"
        )
    special = [(bos, tokenizer.token_to_id(bos))] if config.add_bos else []
    prefix = f"{bos} " if config.add_bos else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{prefix}$A", pair=f"{prefix}$A $B", special_tokens=special
    )
    words = {"unk_token": UNKNOWN} if isinstance(config, WordTokenizer) else {}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eod,
        pad_token=eod,
        clean_up_tokenization_spaces=False,
        chat_template=pass_through(config.add_bos),
        **words,
    )
    fast.save_pretrained(ctx.out)
    ctx.say(f"ids up to {size - 1}, end of document {eod}")
    if taken_out:
        ctx.say(f"taken out of tokenizer.json, with which tokens would be others: {', '.join(taken_out)}")
    unconfirmed = isinstance(config, FileTokenizer) and config.unconfirmed
    warnings = [f"unconfirmed tokenizer: {unconfirmed}"] if unconfirmed else []
    for warning in warnings:
        ctx.say(f"warning: {warning}")
    begins = isinstance(config, FileTokenizer) and config.document_bos
    return TokenizerMetrics(
        vocab_size=size,
        eod_id=tokenizer.token_to_id(eod),
        adds_bos=config.add_bos,
        document_bos_id=tokenizer.token_to_id(bos) if begins else None,
        taken_out=taken_out,
        warnings=warnings,
    ).plain()


if __name__ == "__main__":
    main("tokenizer", run, __doc__)
