"""Text to ids for corpora, by the files of a tokenizer artifact: the SentencePiece model, or the tokenizer.json.

Text may spell a special token, as "</s>" in a page on HTML. A setting of the source says what that is
(`special_tokens`): `text`, characters like any others, or `token`, the token. Both encoders obey it. SentencePiece by
itself reads its control tokens as text but its user-defined ones as tokens; `tokenizers` reads special tokens as
tokens, and where it is told not to, its model may still find them in its vocabulary.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pipeline.data import sentencepiece, tokenizer_files
from pipeline.data.tokenizer_files import UNREACHABLE, Json
from pipeline.errors import PipelineError

Encode = Callable[[list[str]], list[list[int]]]
TEXT, TOKEN = "text", "token"


def spelling(tokens: Iterable[Json]) -> "re.Pattern[str]":
    """What spells a special token: the group that matches is the token, around it is the space that it absorbs."""
    patterns: list[str] = []
    for token in sorted(tokens, key=lambda token: -len(token["content"])):
        word = r"(?<!\w)", r"(?!\w)"
        before, after = word if token["single_word"] else ("", "")
        space_before, space_after = (r"\s*" if token[side] else "" for side in ("lstrip", "rstrip"))
        content = f"(?P<t{len(patterns)}>{re.escape(token['content'])})"
        patterns.append(f"{space_before}{before}{content}{after}{space_after}")
    return re.compile("|".join(patterns) or r"(?!)")


def special_tokens(folder: Path) -> list[Json]:
    """The special tokens of a tokenizer artifact."""
    return tokenizer_files.special(tokenizer_files.read(folder / "tokenizer.json"))


class SpeltTokens:
    """Counts special tokens that documents spell."""

    def __init__(self, folder: Path) -> None:
        tokens = special_tokens(folder)
        self._names = [token["content"] for token in tokens]
        self._spelling = re.compile("|".join(map(re.escape, sorted(self._names, key=len, reverse=True))) or r"(?!)")
        self.counts: Counter[str] = Counter()

    def count(self, texts: Iterable[str]) -> None:
        for text in texts:
            if any(name in text for name in self._names):  # faster than the expression, and mostly false
                self.counts.update(self._spelling.findall(text))


# ---------------------------------------------------------------------------------------------------- SentencePiece


def exact_encoder(folder: Path, spelt: str = TEXT) -> Encode | None:
    """Text to ids by the SentencePiece model, where the tokenizer has one.

    Args:
        spelt: what special tokens spelt in text are: `text` or `token`.
    """
    path = folder / "tokenizer.model"
    if not path.exists():
        return None
    from sentencepiece import SentencePieceProcessor

    specials = special_tokens(folder)
    model, changed = sentencepiece.read(path), False
    for token in specials:  # control tokens are what SentencePiece finds in no text
        if token["id"] < len(model.pieces):
            piece = model.pieces[token["id"]]
            if piece.type not in (sentencepiece.CONTROL, sentencepiece.UNKNOWN):
                piece.type, changed = sentencepiece.CONTROL, True
    source = {"model_proto": model.SerializeToString()} if changed else {"model_file": str(path)}
    pieces = SentencePieceProcessor(**source)

    def encode(texts: list[str]) -> list[list[int]]:
        # One thread, because `tokenize` spreads its shards over processes.
        encoded: list[list[int]] = pieces.encode(texts, num_threads=1)
        return encoded

    return encode if spelt == TEXT else _with_tokens(encode, specials)


def _with_tokens(encode: Encode, specials: list[Json]) -> Encode:
    """An encoder that gives special tokens where text spells them, and `encode`s what is between."""
    pattern, ids = spelling(specials), {token["content"]: token["id"] for token in specials}

    def whole(text: str) -> list[int]:
        tokens, end = [], 0
        for match in pattern.finditer(text):
            tokens += encode([text[end : match.start()]])[0] if match.start() > end else []
            tokens.append(ids[match[str(match.lastgroup)]])
            end = match.end()
        return tokens + (encode([text[end:]])[0] if end < len(text) else [])

    def encode_all(texts: list[str]) -> list[list[int]]:
        plain = encode([text if not pattern.search(text) else "" for text in texts])
        return [whole(text) if pattern.search(text) else ids for text, ids in zip(texts, plain, strict=True)]

    return encode_all


# ---------------------------------------------------------------------------------------------------- tokenizer.json


def _without(data: Json, names: set[str | None]) -> Json:
    """A tokenizer.json for which these tokens are text, with the same ids for all else.

    They are no added tokens any more, and the model's vocabulary has them under names that are in no text.
    """
    model: dict[str, Any] = dict(data["model"])

    def hidden(piece: str) -> str:
        return UNREACHABLE + piece if piece in names else piece

    if isinstance(model["vocab"], list):
        model["vocab"] = [[hidden(piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {hidden(piece): i for piece, i in model["vocab"].items()}
    if model.get("unk_token"):
        model["unk_token"] = hidden(model["unk_token"])
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [
            [left, right] for left, right in pairs if not {left, right, left + right.removeprefix(prefix)} & names
        ]
    kept = [token for token in data["added_tokens"] if token["content"] not in names]
    return data | {"model": model, "added_tokens": kept, "post_processor": None}


def fast_encoder(folder: Path, spelt: str = TEXT) -> Encode:
    """Text to ids by the tokenizer.json that travels with checkpoints, without adding special tokens.

    Args:
        spelt: what special tokens spelt in text are: `text` or `token`.
    """
    path = folder / "tokenizer.json"
    data = tokenizer_files.read(path)
    specials = {token["content"] for token in tokenizer_files.special(data)}
    unknown = {tokenizer_files.unknown(data)}  # no text spells this one, unless it is a special token
    fast = tokenizer_files.load(_without(data, specials | unknown if spelt == TEXT else unknown - specials), str(path))

    def encode(texts: list[str]) -> list[list[int]]:
        try:
            return [encoding.ids for encoding in fast.encode_batch_fast(texts, add_special_tokens=False)]
        except Exception as error:  # the Rust library raises bare Exception
            raise PipelineError(f"{path}: a document cannot be tokenised: {error}; give it a token for that") from None

    return encode
