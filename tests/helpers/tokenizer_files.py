"""Small tokenizers of every kind, and the data stages run with them."""

import io
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pipeline.data import sentencepiece
from tests.helpers.data import SHARED, make, with_source

CASES = SHARED.parent / "cases" / "tok"
TEXTS = [
    "the cat sat on the mat",
    "a </s> b",
    "</s>",
    "x<s>y</s></s> z",
    "  two  spaces </s>  and more ",
    "<unk> of </s",
    "an <eot> here<eot>",
    "ends with <tool> call </s>",
    "",
]
CORPUS = [
    "the cat sat on the mat and ran",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z",
    "</ s> < > / end",
] * 20
COPIES = 48  # of each document, so that some are held out


def flags(content: str, i: int, special: bool = True, **others: bool) -> dict:
    base = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": i, "content": content, "special": special} | base | others


def word_level() -> dict:
    """A word-level tokenizer as data; `</s>` is a word of its vocabulary too, as in files that were saved so."""
    words = sorted({word for text in CORPUS for word in text.split()})
    vocab = {name: i for i, name in enumerate(["<unk>", "</s>", "<s>", "<eot>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [flags("</s>", 1), flags("<s>", 2), flags("<eot>", 3)]
    return data


def bpe(**options: object) -> dict:
    """A byte-level BPE tokenizer as data, with its special tokens behind its vocabulary."""
    from tokenizers import trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["</s>", "<s>", "<eot>"])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    data = json.loads(tokenizer.to_str())
    data["model"].update(options)
    return data


def pieces_of(folder: Path, kind: str = "unigram", **options: object) -> Path:
    """A small SentencePiece model."""
    from sentencepiece import SentencePieceTrainer

    path, model = folder / f"{kind}.model", io.BytesIO()
    options = {"control_symbols": ["<eot>"], "byte_fallback": True} | options
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type=kind,
        vocab_size=320,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **options,
    )
    path.write_bytes(model.getvalue())
    return path


def json_of(model: Path, folder: Path) -> dict:
    """The converted tokenizer.json of a unigram model, its user-defined pieces as special tokens."""
    proto = sentencepiece.read(model)
    for piece in proto.pieces:
        if piece.type == sentencepiece.USER_DEFINED:
            piece.type = sentencepiece.CONTROL
    (folder / "controls.model").write_bytes(proto.SerializeToString())
    return json.loads(sentencepiece.convert(folder / "controls.model").to_str())


def build(tmp_path: Path, data: dict | None = None, model: Path | None = None, texts=TEXTS, entry=(), **source) -> Path:
    """The data of a scale with this tokenizer and one source of these texts, made."""
    tmp_path.mkdir(exist_ok=True)
    files = {"eod": "</s>"} | dict(entry)
    if data is not None:
        (tmp_path / "mine.json").write_text(json.dumps(data))
        files["json_file"] = str(tmp_path / "mine.json")
    if model is not None:
        files["model_file"] = str(model)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in [text for text in texts if text] * COPIES)
    (tmp_path / "texts.jsonl").write_text(lines)
    return make(with_source(tmp_path, files, path=str(tmp_path / "texts.jsonl"), **source), tmp_path / "results")


def tokens(data: Path, split: str = "train") -> list[list[int]]:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    found = IndexedDataset(str(data / "mine" / "tokenize" / split))
    return [list(map(int, found[i])) for i in range(len(found))]
