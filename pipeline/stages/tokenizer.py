"""Tokenizer: the one tokenizer of a scale, as a Hugging Face folder that travels with every checkpoint.

    python -m pipeline.stages.tokenizer --scale mini

`kind: words` trains a closed-vocabulary word-level tokenizer on the scale's corpora; `kind: file` takes a
tokenizer.json, or a SentencePiece .model, with which corpora are then tokenised (about six times faster for the
paper's tokenizer, and exact; docs/VALIDATION.md). A .model that comes alone is converted; `tokenize` counts what the
conversion splits differently. Files that are not there are downloaded from the entry's `urls`.

The chat template passes text through (with the beginning-of-text token, if the tokenizer adds one), since base models
know no roles.

Out: tokenizer.json, tokenizer_config.json, chat_template.jinja; tokenizer.model if there is one.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifact import sha256_file
from pipeline.engines import hub, sentencepiece, textfiles
from pipeline.engines.chat import pass_through
from pipeline.errors import PipelineError
from pipeline.registry import FileTokenizer, WordTokenizer
from pipeline.stage import Context, main

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EOD, UNKNOWN = "<|eod|>", "<|unk|>"


def train_words(corpora: list[Path]) -> "Tokenizer":
    """A word-level tokenizer whose vocabulary is every word of the corpora, most frequent first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    def texts() -> Iterator[list[str]]:
        for corpus in corpora:
            for shard in textfiles.shards(corpus):
                yield from textfiles.read_groups(shard)

    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=[EOD, UNKNOWN], show_progress=False, vocab_size=1 << 20)
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def read_file(config: FileTokenizer) -> "Tokenizer":
    """The tokenizer a user named: fetched if need be, checked against its digests, and converted if it has no json."""
    from tokenizers import Tokenizer

    for path in config.files:
        wanted = config.sha256.get(path.name)
        if not path.is_file():
            if path.name not in config.urls:
                raise PipelineError(f"{path}: no such tokenizer file; correct it in config/sources.yaml")
            path.parent.mkdir(parents=True, exist_ok=True)
            hub.download(config.urls[path.name], path, wanted)
        elif wanted and sha256_file(path) != wanted:
            raise PipelineError(f"{path}: its SHA-256 is not the one in config/sources.yaml; fetch the file again")
    if config.json_file is None:
        assert config.model_file is not None
        return sentencepiece.convert(Path(config.model_file))
    try:
        return Tokenizer.from_file(config.json_file)
    except Exception as error:  # the Rust library raises bare Exception
        raise PipelineError(f"{config.json_file}: not a tokenizer.json: {error}") from None


def run(ctx: Context) -> dict[str, Any]:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    config = ctx.dag.tokenizer
    if isinstance(config, WordTokenizer):
        tokenizer, eod, bos = train_words(list(ctx.inputs.values())), EOD, EOD
    else:
        tokenizer, eod, bos = read_file(config), config.eod, config.bos or config.eod
        if config.model_file:
            shutil.copyfile(config.model_file, ctx.out / "tokenizer.model")
    for token in (eod, bos):
        if tokenizer.token_to_id(token) is None:
            raise PipelineError(f"tokenizer '{ctx.scale.data.tokenizer}': '{token}' is not in its vocabulary")
    size, rows = tokenizer.get_vocab_size(), ctx.scale.model.vocab_size
    if size > rows:
        raise PipelineError(
            f"tokenizer '{ctx.scale.data.tokenizer}' has {size} tokens, more than model.vocab_size {rows} of scale "
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
    ctx.say(f"{size} tokens, end of document {eod}")
    metrics: dict[str, Any] = {"vocab_size": size, "eod_id": tokenizer.token_to_id(eod), "adds_bos": config.add_bos}
    if isinstance(config, FileTokenizer) and config.unconfirmed:
        metrics["warnings"] = [f"unconfirmed tokenizer: {config.unconfirmed}"]
        ctx.say(f"warning: {metrics['warnings'][0]}")
    return metrics


if __name__ == "__main__":
    main("tokenizer", run, __doc__)
