"""Special tokens that documents spell, with either encoder."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from pipeline.artifacts.store import read_record
from pipeline.data import encoders
from tests.helpers.data import SHARED, with_source
from tests.helpers.tokenizer_files import CASES, COPIES, TEXTS, bpe, build, json_of, pieces_of, tokens, word_level


def artifact(tmp_path: Path, kind: str) -> Path:
    """The tokenizer artifact of a kind of tokenizer file."""
    match kind:
        case "words":
            made = build(tmp_path, word_level())
        case "bpe":
            made = build(tmp_path, bpe())
        case "bpe-whole-words":  # looks words up in the vocabulary before it merges, where special tokens may be
            data = bpe(ignore_merges=True)
            data["model"]["vocab"] |= {token["content"]: token["id"] for token in data["added_tokens"]}
            made = build(tmp_path, data)
        case "bpe-merged":  # its merges make "</s>"
            data = bpe()
            for left, right in (("<", "/"), ("</", "s"), ("</s", ">")):
                if left + right != "</s>":
                    data["model"]["vocab"].setdefault(left + right, 500 + len(data["model"]["vocab"]))
                data["model"]["merges"].append([left, right])
            data["model"]["vocab"]["</s>"] = next(t["id"] for t in data["added_tokens"] if t["content"] == "</s>")
            made = build(tmp_path, data)
        case "unigram-json":
            data = json_of(pieces_of(tmp_path), tmp_path)
            data["model"]["vocab"] = [[p, 0.0 if p[0] == "<" else s] for p, s in data["model"]["vocab"]]
            made = build(tmp_path, data)
        case "unigram":
            made = build(tmp_path, model=pieces_of(tmp_path))
        case "unigram-defined":
            model = pieces_of(tmp_path, control_symbols=[], user_defined_symbols=["<eot>"])
            made = build(tmp_path, json_of(model, tmp_path), model, entry={"eod": "<eot>"})
        case "unigram-both":
            model = pieces_of(tmp_path)
            made = build(tmp_path, json_of(model, tmp_path), model)
        case _:
            raise ValueError(kind)
    return made / "tokenizer"


KINDS = ("words", "bpe", "bpe-whole-words", "bpe-merged", "unigram-json", "unigram", "unigram-defined", "unigram-both")


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_spelt_in_text_are_text_or_tokens_with_either_encoder(tmp_path, kind):
    folder = artifact(tmp_path, kind)
    specials = {token["content"]: token["id"] for token in encoders.special_tokens(folder)}
    assert {"</s>", "<eot>"} <= set(specials)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    as_text, as_token = (encoders.fast_encoder(folder, spelt) for spelt in ("text", "token"))
    found = as_text(TEXTS)
    assert not {i for ids in found for i in ids} & (set(specials.values()) - {tokenizer.token_to_id("<unk>")})
    if kind != "words":  # whose other words are unknown
        for text, ids in zip(TEXTS, found, strict=True):
            assert tokenizer.decode(ids, skip_special_tokens=False).strip() == text.strip()
    tokenized = as_token(TEXTS)
    for text, ids in zip(TEXTS, tokenized, strict=True):
        if "<unk>" in text:
            continue
        assert [ids.count(i) for i in specials.values()][1:] == [text.count(name) for name in specials][1:]
        assert ids == tokenizer.encode(text, add_special_tokens=False).ids
    for spelt, fast in (("text", found), ("token", tokenized)):
        if (exact := encoders.exact_encoder(folder, spelt)) is not None:
            assert exact(TEXTS) == fast
    counter = encoders.SpeltTokens(folder)
    counter.count(TEXTS)
    assert counter.counts["</s>"] == 6 and counter.counts["<eot>"] == 2


def test_an_added_token_that_is_not_special_is_a_token_in_any_case(tmp_path):
    folder = artifact(tmp_path, "bpe")
    tool = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("<tool>")
    for spelt in ("text", "token"):
        assert encoders.fast_encoder(folder, spelt)(["a <tool> b"])[0].count(tool) == 1


def test_tokens_take_up_space_and_stand_alone_as_their_flags_say_with_either_encoder(tmp_path):
    model = pieces_of(tmp_path)
    data = json_of(model, tmp_path)
    for token in data["added_tokens"]:
        token["lstrip"] = token["rstrip"] = token["content"] == "</s>"
        token["single_word"] = token["content"] == "<eot>"
    folder = build(tmp_path, data, model) / "tokenizer"
    texts = ["a  </s>  b", "y <eot> z", "<eot>", " </s> ", "(<eot>)"]
    fast, exact = encoders.fast_encoder(folder, "token"), encoders.exact_encoder(folder, "token")
    assert fast(texts) == exact(texts) and [3 in ids for ids in exact(["x<eot>y", "x <eot> y"])] == [False, True]


@pytest.mark.parametrize(("spelt", "ends"), [(None, 1), ("text", 1), ("token", 2)])
def test_tokens_spelt_in_documents_are_counted_and_obeyed(tmp_path, spelt, ends):
    setting = {"special_tokens": spelt} if spelt else {}
    made = build(tmp_path, bpe(), texts=["the </s> cat"], **setting)
    eod = read_record(made / "tokenizer").metrics["eod_id"]
    assert {ids.count(eod) for ids in tokens(made) + tokens(made, "validation")} == {ends}
    assert read_record(made / "mine" / "tokenize").metrics["special_tokens_spelt"] == {"</s>": COPIES}


def test_what_spelt_tokens_are_changes_tokens_and_not_the_corpus(tmp_path):
    text, token = (with_source(tmp_path, path="x", special_tokens=spelt) for spelt in ("text", "token"))
    assert text.fingerprint(text.of("corpus")[0]) == token.fingerprint(token.of("corpus")[0])
    assert text.fingerprint(text.of("tokenize")[0]) != token.fingerprint(token.of("tokenize")[0])


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared folder of inputs that went wrong is not here")
def test_the_documents_that_spell_the_end_of_documents(tmp_path):
    texts = [json.loads(line)["text"] for line in (CASES / "docs_eod.jsonl").read_text().splitlines()]
    spelt = sum(text.count("</s>") for text in texts)
    for setting, extra in (("text", 0), ("token", COPIES * spelt)):
        data = json.loads((CASES / "plain.json").read_text())
        made = build(tmp_path / setting, data, texts=texts, special_tokens=setting)
        ends = sum(ids.count(1) for split in ("train", "validation") for ids in tokens(made, split))
        assert ends == COPIES * len(texts) + extra
        assert read_record(made / "mine" / "tokenize").metrics["special_tokens_spelt"] == {"</s>": COPIES * spelt}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder with the paper's tokenizer is not here")
@pytest.mark.parametrize("name", ["llm-jp-v3", "mixtral-v1"])
def test_published_tokenizers_read_spelt_tokens_alike_by_both_files(tmp_path, name):
    folder = SHARED / "tokenizers" / name
    (model,) = folder.glob("*.model")
    made = build(tmp_path, json.loads((folder / "tokenizer.json").read_text()), model, entry={"bos": "<s>"})
    for spelt in ("text", "token"):
        fast, exact = (
            encoders.fast_encoder(made / "tokenizer", spelt),
            encoders.exact_encoder(made / "tokenizer", spelt),
        )
        assert exact(TEXTS) == fast(TEXTS)
