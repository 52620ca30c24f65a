"""Tokenizer files as they are in the wild: settings for inference, gaps in ids, pairs that disagree, tokens in text."""

import argparse
import json

import pytest
import yaml
from tokenizers import normalizers

from pipeline.artifacts.store import read_record
from pipeline.commands import status
from pipeline.data import tokenizer_files
from pipeline.data.registry import load_sources
from pipeline.errors import PipelineError
from tests.helpers.config import CONFIG
from tests.helpers.data import with_source
from tests.helpers.tokenizer_files import CASES, COPIES, bpe, build, flags, json_of, pieces_of, tokens, word_level

# ------------------------------------------------------------------------------------------- settings in the file

SETTINGS = {
    "truncation": (
        {"truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}},
        "truncation to 3 tokens",
    ),
    "padding": (
        {
            "padding": {
                "strategy": {"Fixed": 40},
                "direction": "Left",
                "pad_to_multiple_of": None,
                "pad_id": 1,
                "pad_type_id": 0,
                "pad_token": "</s>",
            }
        },
        "padding",
    ),
    "post_processor": (
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [2], "tokens": ["<s>"]}},
            }
        },
        None,
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_for_inference_change_no_token_and_do_not_travel_with_checkpoints(tmp_path, name):
    from transformers import AutoTokenizer

    change, said = SETTINGS[name]
    plain = build(tmp_path / "plain", word_level())
    data = build(tmp_path / "set", word_level() | change)
    assert tokens(data) == tokens(plain) and tokens(data, "validation") == tokens(plain, "validation")
    assert read_record(data / "tokenizer").metrics.get("taken_out") == ([said] if said else None)
    written = json.loads((data / "tokenizer" / "tokenizer.json").read_text())
    assert written["truncation"] is None and written["padding"] is None
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (data / "tokenizer" / file).read_bytes() == (plain / "tokenizer" / file).read_bytes()
    text = " ".join(["cat"] * 50)
    assert len(AutoTokenizer.from_pretrained(data / "tokenizer")(text)["input_ids"]) == 50


def test_merges_are_not_dropped_at_random(tmp_path):
    plain = build(tmp_path / "plain", bpe())
    data = build(tmp_path / "set", bpe(dropout=0.5))
    assert tokens(data) == tokens(plain)
    assert read_record(data / "tokenizer").metrics["taken_out"] == ["dropout of merges 0.5"]
    assert json.loads((data / "tokenizer" / "tokenizer.json").read_text())["model"]["dropout"] is None


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared folder of inputs that went wrong is not here")
def test_the_file_with_truncation_that_went_wrong(tmp_path):
    texts = [json.loads(line)["text"] for line in (CASES / "docs.jsonl").read_text().splitlines()]
    counts = []
    for name in ("plain", "truncation"):
        data = build(tmp_path / name, json.loads((CASES / f"{name}.json").read_text()), texts=texts)
        metrics = read_record(data / "mine" / "tokenize").metrics
        counts.append((metrics["train_tokens"], metrics["validation_tokens"]))
    assert counts[0] == counts[1] and sum(counts[0]) == COPIES * 12_300


# ------------------------------------------------------------------------------------------- ids


def test_ids_with_gaps_are_kept_and_the_largest_one_counts(tmp_path):
    data = word_level()
    data["model"]["vocab"]["zebra"] = 900
    data["added_tokens"] += [flags("<far>", 950), flags("<tool>", 931, special=False)]
    made = build(tmp_path, data, texts=["the zebra <tool> ran", "cat <far>"], special_tokens="token")
    assert read_record(made / "tokenizer").metrics["vocab_size"] == 951
    vocab = data["model"]["vocab"]
    assert {tuple(ids) for ids in tokens(made)} == {
        (vocab["the"], 900, 931, vocab["ran"], 1),
        (vocab["cat"], 950, 1),
    }
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(made / "tokenizer")
    assert fast("the zebra <tool> <far>")["input_ids"] == [vocab["the"], 900, 931, 950]
    assert fast.decode([931, 900]) == "<tool> zebra"


def test_gaps_behind_a_unigram_vocabulary_are_kept(tmp_path):
    data = json_of(pieces_of(tmp_path), tmp_path)
    far = len(data["model"]["vocab"]) + 7
    data["added_tokens"].append(flags("<tool>", far, special=False))
    made = build(tmp_path, data, texts=["the <tool> cat", "the cat sat"])
    assert read_record(made / "tokenizer").metrics["vocab_size"] == far + 1
    assert {far in ids for ids in tokens(made)} == {True, False}


def test_a_vocabulary_with_gaps_beyond_the_embedding_is_refused(tmp_path):
    data = word_level()
    data["model"]["vocab"]["zebra"] = 99_584
    with pytest.raises(PipelineError, match="tokenizer 'other' needs 99585 rows .* more than model.vocab_size 99584"):
        build(tmp_path, data)


def test_two_tokens_with_one_id_are_refused(tmp_path):
    data = word_level()
    data["added_tokens"].append(flags("<tool>", data["model"]["vocab"]["cat"]))
    with pytest.raises(PipelineError, match="two tokens, 'cat' and '<tool>', have the id"):
        build(tmp_path, data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "mine.json: not a tokenizer.json"),
        ("[]", "mine.json: not a tokenizer.json"),
        ("{}", "mine.json: not a tokenizer.json"),
        ('{"model": 3}', "mine.json: not a tokenizer.json"),
        ('{"model": {"vocab": 5}}', "mine.json: not a tokenizer.json"),
        ('{"model": {"vocab": {"a": 0}}, "added_tokens": 7}', "mine.json: not a tokenizer.json"),
        ('{"model": {"type": "WordLevel", "vocab": {"a": "x"}}}', "mine.json: not a tokenizer.json"),
        ("\xff", "mine.json: not a tokenizer.json"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, content, message):
    (tmp_path / "mine.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(PipelineError, match=message):
        build(tmp_path, entry={"json_file": str(tmp_path / "mine.json")})


# ------------------------------------------------------------------------------------------- eod and bos


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"eod": "<nope>"},
            "eod '<nope>' is not in its vocabulary, as a single token; its special tokens are: '</s>",
        ),
        ({"eod": "the cat"}, "eod 'the cat' is not in its vocabulary, as a single token"),
        ({"eod": "the"}, "eod 'the' is a token of ordinary text, .* It has: '</s>'"),
        ({"eod": "<unk>"}, "eod '<unk>' is a token of ordinary text"),
        ({"bos": "cat"}, "bos 'cat' is a token of ordinary text"),
        ({"bos": "<nope>"}, "bos '<nope>' is not in its vocabulary"),
        ({"document_bos": True}, "tokenizers.other.*: document_bos: give the token, `bos`"),
    ],
)
def test_a_token_that_ends_or_begins_documents_is_one_special_token(tmp_path, entry, message):
    with pytest.raises(PipelineError, match=message):
        build(tmp_path, word_level(), entry=entry)


def test_a_byte_does_not_end_documents(tmp_path):
    with pytest.raises(PipelineError, match="eod '<0x0A>' is a token of ordinary text"):
        build(tmp_path, model=pieces_of(tmp_path), entry={"eod": "<0x0A>"})


@pytest.mark.parametrize("listed", [True, False])
def test_a_token_of_the_registry_is_special_although_the_file_does_not_say_so(tmp_path, listed):
    data = word_level()
    data["added_tokens"] = [flags("</s>", 1, special=False)] if listed else []
    made = build(tmp_path, data, texts=["the </s> cat"])
    assert {tuple(ids[1:]) for ids in tokens(made)} == {(0, data["model"]["vocab"]["cat"], 1)}, "<unk>, as it is text"
    assert read_record(made / "mine" / "tokenize").metrics["special_tokens_spelt"] == {"</s>": COPIES}


def test_documents_begin_with_the_token_that_the_entry_names(tmp_path):
    made = build(tmp_path / "with", word_level(), texts=["the cat", "sat"], entry={"bos": "<s>", "document_bos": True})
    plain = build(tmp_path / "without", word_level(), texts=["the cat", "sat"], entry={"bos": "<s>"})
    assert tokens(made) == [[2, *ids] for ids in tokens(plain)]
    assert all(ids[-1] == 1 and 2 not in ids for ids in tokens(plain))
    metrics = read_record(made / "mine" / "tokenize").metrics
    assert metrics["document_bos_id"] == 2 and "document_bos_id" not in read_record(plain / "mine" / "tokenize").metrics
    both = [
        with_source(folder, {"json_file": "x", "eod": "</s>", "bos": "<s>"} | more, path="x")
        for folder, more in ((tmp_path / "with", {"document_bos": True}), (tmp_path / "without", {}))
    ]
    one, other = (dag.fingerprint(dag.of("tokenize")[0]) for dag in both)
    assert one != other, "it is identity"


def test_the_papers_documents_begin_with_a_token_and_the_word_tokenizers_do_not():
    registry = load_sources(CONFIG / "sources.yaml").tokenizers
    assert registry["llm-jp-v3"].document_bos and registry["llm-jp-v3"].bos == "<s>"
    assert not hasattr(registry["words"], "document_bos")


# ------------------------------------------------------------------------------------------- two files


def test_two_files_of_different_tokenizers_are_refused(tmp_path):
    (tmp_path / "b").mkdir()
    model, data = pieces_of(tmp_path), json_of(pieces_of(tmp_path / "b", control_symbols=["<x>", "<y>"]), tmp_path)
    with pytest.raises(PipelineError, match="piece .* has id .* in the tokenizer.json; the two files are not of one"):
        build(tmp_path, data, model)
    with pytest.raises(PipelineError, match="eod '</s>' has id 1 in the tokenizer.json and 2 in .*unigram.model"):
        build(tmp_path, word_level(), model)


def test_two_files_may_name_a_control_token_otherwise_but_not_that_of_documents(tmp_path):
    model = pieces_of(tmp_path)
    renamed = json.loads(json.dumps(json_of(model, tmp_path)).replace("<eot>", "<eot|mine>"))
    made = build(tmp_path / "renamed", renamed, model)
    assert read_record(made / "mine" / "tokenize").metrics["json_difference"]["ids_differing"] == 0
    with pytest.raises(PipelineError, match=r"eod '<eot\|mine>' has id 3 in the tokenizer.json and None in"):
        build(tmp_path / "eod", renamed, model, entry={"eod": "<eot|mine>"})


def test_a_model_file_that_is_none_is_named(tmp_path):
    (tmp_path / "x.model").write_bytes(b"no")
    with pytest.raises(PipelineError, match="x.model: not a SentencePiece model"):
        build(tmp_path, word_level(), tmp_path / "x.model")


# ------------------------------------------------------------------------------------------- the number of tokens


@pytest.mark.parametrize(("off", "more"), [(0, None), (-5, "5 more"), (7, "7 fewer")])
def test_the_number_of_tokens_is_compared_with_the_registrys(tmp_path, capsys, off, more):
    made = build(tmp_path / "count", word_level(), texts=["the cat", "sat on the mat"])
    counted = read_record(made / "mine" / "tokenize").metrics
    total = counted["train_tokens"] + counted["validation_tokens"]
    assert "tokens_expected" not in counted
    texts = ["the cat", "sat on the mat"]
    made = build(tmp_path / "compare", word_level(), texts=texts, tokens=total + off, unconfirmed="which part it is")
    metrics = read_record(made / "mine" / "tokenize").metrics
    assert (metrics["tokens"], metrics["tokens_expected"], metrics["tokens_difference"]) == (total, total + off, -off)
    warnings = metrics.get("warnings", [])
    assert len(warnings) == (more is not None)
    if more:
        assert more in warnings[0] and "which part it is" in warnings[0] and f"{total + off:,}" in warnings[0]
        assert f"warning: {warnings[0]}" in capsys.readouterr().out


def test_status_shows_what_the_records_of_data_warn_of(tmp_path, capsys):
    build(tmp_path, word_level(), texts=["the cat", "sat on the mat"], tokens=3)
    capsys.readouterr()
    asked = argparse.Namespace(scale="smoke", watch=None, config=tmp_path / "grid.yaml", results=tmp_path / "results")
    assert status.run(asked) == 0
    assert "tokenize mine: warning: source 'mine' has " in capsys.readouterr().out


def test_no_settings_are_left_in_what_is_mended():
    data = word_level() | SETTINGS["truncation"][0] | SETTINGS["padding"][0]
    assert tokenizer_files.take_out_settings(data) == ["truncation to 3 tokens", "padding"]
    assert tokenizer_files.take_out_settings(data) == []
    assert yaml.safe_dump(data["model"]) == yaml.safe_dump(word_level()["model"]) and normalizers
