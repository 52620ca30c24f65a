"""SentencePiece models as `tokenizers` ones, for what travels with a checkpoint.

Only unigram models with the identity normaliser are converted: `tokenizers` has the same model for them. Its Viterbi
search breaks ties between equally likely splits differently from SentencePiece, so a few ids in a million differ;
corpora are tokenised with SentencePiece itself, and `tokenize` counts the difference (docs/VALIDATION.md).

The converters of transformers are not used, since they follow a family of models and not the file. SpmConverter strips
the end of a text and joins runs of spaces, whatever the model's normaliser says, so that code gets other ids than from
SentencePiece. LlamaConverter takes the first three pieces for <unk>, <s> and </s>, and a space as the beginning of
every text, whatever the model says; of a model that differs it makes another tokenizer without a warning.
"""

from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "▁"
UNIGRAM = 1  # TrainerSpec.ModelType
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6  # ModelProto.SentencePiece.Type


def read(path: Path) -> Any:
    """A SentencePiece model as its protocol buffer, ModelProto.

    Raises:
        PipelineError: the file is not one.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
        if not model.pieces:
            raise DecodeError("it has no pieces")
    except DecodeError as error:
        raise PipelineError(f"{path}: not a SentencePiece model: {error}") from None
    return model


def convert(path: Path) -> "Tokenizer":
    """The `tokenizers` tokenizer of a SentencePiece unigram model, with the same ids.

    Raises:
        PipelineError: the file is not a SentencePiece model, or not one that can be converted.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    model = read(path)
    spec, trainer = model.normalizer_spec, model.trainer_spec
    faults = [
        ("it is not a unigram model", trainer.model_type != UNIGRAM),
        (f"its normaliser is '{spec.name}'", bool(spec.precompiled_charsmap)),
        ("it removes extra spaces", spec.remove_extra_whitespaces),
        ("it does not escape spaces", not spec.escape_whitespaces),
        ("it writes spaces behind words", trainer.treat_whitespace_as_suffix),
        ("it has user-defined pieces", any(piece.type == USER_DEFINED for piece in model.pieces)),
    ]
    for fault, present in faults:
        if present:
            raise PipelineError(
                f"{path}: cannot be converted to a tokenizer.json: {fault}; give its entry a `json_file`"
            )
    scores = [(piece.piece, piece.score) for piece in model.pieces]
    byte_fallback = any(piece.type == BYTE for piece in model.pieces)
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=trainer.unk_id, byte_fallback=byte_fallback))
    escape = [normalizers.Replace(" ", SPACE)]
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), *escape] if spec.add_dummy_prefix else escape
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    controls = [piece.piece for piece in model.pieces if piece.type == CONTROL]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in controls])
    return tokenizer


def differing(exact: list[int], other: list[int]) -> int:
    """How many ids of `exact` the tokenisation `other` of the same text does not have in their place."""
    if exact == other:
        return 0
    blocks = SequenceMatcher(None, exact, other, autojunk=False).get_matching_blocks()
    return len(exact) - sum(block.size for block in blocks)
