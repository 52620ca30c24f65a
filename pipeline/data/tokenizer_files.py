"""Files tokenizer.json as they are in the wild: what in them is for inference only, and which ids they really give.

A tokenizer.json is read as data and corrected before it becomes a tokenizer, so that corpora are tokenised with the
same tokenizer that travels with checkpoints.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Json = dict[str, Any]
UNREACHABLE = "\uffff\ufffe"  # begins names of vocabulary entries that no text holds: both are noncharacters
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def read(path: Path) -> Json:
    """The content of a tokenizer.json.

    Raises:
        PipelineError: it is not one.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or "vocab" not in data.get("model", {}):
            raise ValueError("it has no model with a vocabulary")
        data["added_tokens"] = data.get("added_tokens") or []
    except (ValueError, TypeError, AttributeError) as error:
        raise PipelineError(f"{path}: not a tokenizer.json: {error}") from None
    return data


def take_out_settings(data: Json) -> list[str]:
    """Take out settings for inference or training, which would cut, fill or change texts; returns what they were."""
    settings = []
    if truncation := data.get("truncation"):
        settings.append(f"truncation to {truncation.get('max_length')} tokens")
    if data.get("padding"):
        settings.append("padding")
    if dropout := data["model"].get("dropout"):
        settings.append(f"dropout of merges {dropout}")
        data["model"]["dropout"] = None
    data["truncation"] = data["padding"] = None
    return settings


def entries(data: Json) -> dict[str, int]:
    """The vocabulary of the model and the added tokens: text -> id."""
    vocab = data["model"]["vocab"]
    own = {piece: i for i, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
    return own | {token["content"]: token["id"] for token in data.get("added_tokens", [])}


def size(data: Json) -> int:
    """Rows an embedding needs: the largest id plus one. The number of tokens is less where ids have gaps."""
    return max(entries(data).values(), default=-1) + 1


def special(data: Json) -> list[Json]:
    """Those of the added tokens that are special."""
    return [token for token in data.get("added_tokens", []) if token["special"]]


def unknown(data: Json) -> str | None:
    """The token for text that no other token covers."""
    model = data["model"]
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token")


def load(data: Json, name: str) -> "Tokenizer":
    """The tokenizer of these data, with the ids they give; where `tokenizers` would give others, `data` are corrected.

    Whatever their ids, it numbers added tokens that are not in the model's vocabulary behind it: so they are put there.

    Raises:
        PipelineError: it cannot be loaded, or two tokens have one id; the message begins with `name`.
    """
    tokenizer, ids = _load(data, name), entries(data)
    holders: dict[int, str] = {}
    for content, i in ids.items():
        if (other := holders.setdefault(i, content)) != content:
            raise PipelineError(f"{name}: two tokens, '{other}' and '{content}', have the id {i}")
    if all(tokenizer.token_to_id(content) == i for content, i in ids.items()):
        return tokenizer
    vocab = data["model"]["vocab"]
    for token in sorted(data["added_tokens"], key=lambda token: token["id"]):
        if isinstance(vocab, dict):
            vocab.setdefault(token["content"], token["id"])
        elif token["id"] >= len(vocab):
            score = min(score for _, score in vocab)
            vocab += [[f"{UNREACHABLE}{i}", score] for i in range(len(vocab), token["id"])]
            vocab.append([token["content"], score])
    tokenizer = _load(data, name)
    for content, i in ids.items():
        if (given := tokenizer.token_to_id(content)) != i:
            raise PipelineError(f"{name}: its token '{content}' has id {i}, but `tokenizers` gives it {given}")
    return tokenizer


def _load(data: Json, name: str) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps(data))
    except Exception as error:  # the Rust library raises bare Exception
        raise PipelineError(f"{name}: not a tokenizer.json: {error}") from None


def make_special(data: Json, token: str, key: str, name: str) -> None:
    """Mark a token as special: text does not hold it unless it spells it.

    Args:
        key: of the registry, which names the token.

    Raises:
        PipelineError: it is not one token, or one that ordinary text is made of.
    """
    ids, others = entries(data), ", ".join(f"'{entry['content']}'" for entry in special(data)) or "none"
    if token not in ids:
        raise PipelineError(
            f"{name}: {key} '{token}' is not in its vocabulary, as a single token; its special tokens are: {others}"
        )
    entry = next((entry for entry in data["added_tokens"] if entry["content"] == token), None)
    if entry is not None and entry["special"]:
        return
    word = token.strip("▁Ġ \n\t")
    if not word or word.isalnum() or re.fullmatch(r"<0x[0-9A-F]{2}>", token) or token == unknown(data):
        raise PipelineError(
            f"{name}: {key} '{token}' is a token of ordinary text, where documents would seem to end or begin; name a "
            f"special one. It has: {others}"
        )
    if entry is not None:
        entry["special"] = True
    else:
        data["added_tokens"].append({"id": ids[token], "content": token, "special": True} | PLAIN)
        data["added_tokens"].sort(key=lambda entry: entry["id"])


def check_agreement(data: Json, model_file: Path, tokens: dict[str, str], name: str) -> list[str]:
    """See that a tokenizer.json and a SentencePiece model give the same ids; returns the model's control tokens.

    Controls may have other names in the two, as `<PAD>` and `<PAD|LLM-jp>`, but not the registry's `tokens` (by key).

    Raises:
        PipelineError: they do not; the first difference is named.
    """
    from pipeline.data.sentencepiece import CONTROL, UNKNOWN, read

    pieces = [(piece.piece, piece.type) for piece in read(model_file).pieces]
    json_ids, model_ids = entries(data), {piece: i for i, (piece, _) in enumerate(pieces)}
    for key, token in tokens.items():
        if model_ids.get(token) != json_ids.get(token):
            raise PipelineError(
                f"{name}: {key} '{token}' has id {json_ids.get(token)} in the tokenizer.json and "
                f"{model_ids.get(token)} in {model_file}; the two files are not of one tokenizer"
            )
    for i, (piece, kind) in enumerate(pieces):
        if kind not in (CONTROL, UNKNOWN) and json_ids.get(piece) != i:
            raise PipelineError(
                f"{name}: piece {i} of {model_file}, '{piece}', has id {json_ids.get(piece)} in the tokenizer.json; "
                f"the two files are not of one tokenizer ({len(pieces)} pieces, {len(json_ids)} tokens): give a pair, "
                f"or one"
            )
    return [piece for i, (piece, kind) in enumerate(pieces) if kind == CONTROL and json_ids.get(piece) == i]
