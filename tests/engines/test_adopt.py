"""Adopting a finished checkpoint: what is planned, and what is taken from a folder."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.artifacts.record import sha256_file
from pipeline.dag.dag import Dag, Job
from pipeline.errors import PipelineError
from pipeline.runner import execute
from pipeline.stages import adopt, tokenizer
from tests.helpers.adopting import NAME, adopted, grid_of
from tests.helpers.checkpoints import CPU


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    return {path.name: (sha256_file(path), path.stat().st_mtime_ns) for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------------ what is planned


def test_an_adopted_point_is_not_trained_and_only_the_data_that_tasks_ask_about_is_made(lab, tmp_path):
    dag = Dag.load("smoke", grid_of(lab, tmp_path, {"path": "some/{name}"}, grpo=True))
    (name,) = dag.points
    assert name == NAME and dag.points[name].adopt.path == f"some/{NAME}"
    assert {job.stage for job in dag.jobs} == {
        *(
            "corpus",
            "adopt",
            "preflight",
            "grpo",
            "benchmark",
            "decode",
            "taskloss",
            "table",
            "claims",
            "figures",
            "report",
        )
    }
    for job in dag.jobs:
        if job.stage in ("benchmark", "decode", "taskloss"):
            assert dag.inputs(job)["checkpoint"].stage == ("grpo" if job.variant == "grpo" else "adopt")
    (grpo,) = dag.of("grpo")
    assert dag.inputs(grpo)["checkpoint"] == Job("adopt", "smoke", point=name)
    assert Job("adopt", "smoke", point=name) in dag.inputs(Job("table", "smoke")).values()


def test_trained_and_adopted_points_stand_side_by_side(lab, tmp_path):
    path = grid_of(lab, tmp_path, {"path": "x"})
    grid = yaml.safe_load(path.read_text())
    del grid["scales"]["smoke"]["adopt"]
    grid["scales"]["smoke"]["points"] = [
        {"hidden": 32, "experts": [4, 8], "topk": 2},
        {"hidden": 32, "experts": 16, "topk": 2, "adopt": {"path": "x"}},
    ]
    path.write_text(yaml.safe_dump(grid))
    dag = Dag.load("smoke", path)
    assert [dag.points[str(job.point)].experts for job in dag.of("pretrain")] == [4, 8]
    assert [dag.points[str(job.point)].experts for job in dag.of("adopt")] == [16]
    assert len(dag.of("tokenize")) == 2 and len(dag.of("tokenizer")) == 1


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ({}, "scales.smoke.adopt: give either `repo` or `path`"),
        ({"repo": "a/b", "path": "c"}, "give either `repo` or `path`"),
        ({"path": "c", "revision": "main"}, "a folder has none"),
        ({"repo": "a/b"}, r"points.0.adopt: no revision for point d32.* `revision: main`"),
        ({"repo": "a/b", "pinned": {NAME: "main"}}, "should match pattern"),
        ({"path": "c", "sha256": {"config.json": "abc"}}, "should match pattern"),
    ],
)
def test_an_origin_that_says_too_little_or_too_much_is_refused(lab, tmp_path, origin, message):
    with pytest.raises(PipelineError, match=message):
        Dag.load("smoke", grid_of(lab, tmp_path, origin))


def test_one_entry_pins_the_revisions_and_digests_of_several_points(lab, tmp_path):
    commit, digest = "1" * 40, "2" * 64
    origin = {"repo": "org/x-{name}", "revision": "main", "pinned": {NAME: commit}}
    origin["sha256"] = {f"{NAME}/config.json": digest}
    dag = Dag.load("smoke", grid_of(lab, tmp_path, origin, experts=[4, 8]))
    first, second = (point.adopt for point in dag.points.values())
    assert (first.repo, first.revision, first.sha256) == (f"org/x-{NAME}", commit, {"config.json": digest})
    assert (second.revision, second.sha256) == ("main", {})
    assert second.repo.startswith("org/x-d32-E8-k2-")


# ------------------------------------------------------------------------------------------------ what is taken


def test_a_folder_is_adopted_as_it_is_and_left_as_it_was(lab, source, tmp_path):
    before = snapshot(source)
    digests = {name: digest for name, (digest, _) in before.items() if name.endswith(".safetensors")}
    record, out = adopted(lab, tmp_path, {"path": str(source), "sha256": digests})
    assert snapshot(source) == before
    made = {entry.path: entry.sha256 for entry in record.outputs}
    assert made.items() >= {name: digest for name, (digest, _) in before.items()}.items()
    assert set(made) - set(before) == {"chat_template.jinja"}
    assert not any((out / name).samefile(source / name) for name in before)
    metrics = record.metrics
    assert (metrics["origin"], metrics["commit"], metrics["warnings"]) == (str(source), None, [])
    assert (metrics["parameters"], metrics["dtype"]) == (49_568, "F32")
    assert (metrics["tokenizer"], metrics["adds_bos"]) == ("the checkpoint's", True)


def test_the_chat_template_that_is_added_prompts_as_the_evaluations_do(lab, source, tmp_path):
    from transformers import AutoTokenizer

    _, out = adopted(lab, tmp_path, {"path": str(source)})
    tokens, text = AutoTokenizer.from_pretrained(out), "question : 1 + 2 answer :"
    chat = tokens.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    assert chat["input_ids"] == tokens(text)["input_ids"]


def test_what_cannot_be_made_sure_of_is_in_the_record(lab, source, tmp_path):
    config = json.loads((source / "tokenizer_config.json").read_text()) | {"chat_template": "<user> hello"}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    shutil.copyfile(source / "model-00001-of-00005.safetensors", source / "consolidated.safetensors")
    record, out = adopted(lab, tmp_path, {"path": str(source)})
    said = "\n".join(record.metrics["warnings"])
    assert "without `sha256`" in said and "consolidated.safetensors" in said
    assert not (out / "consolidated.safetensors").exists() and not (out / "chat_template.jinja").exists()


def test_truncation_in_a_checkpoints_tokenizer_file_is_taken_out_and_said(lab, source, tmp_path):
    from tokenizers import Tokenizer

    for name in ("plain", "cut"):
        (tmp_path / name).mkdir()
    _, plain = adopted(lab, tmp_path / "plain", {"path": str(source)})
    tokens = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokens.enable_truncation(3)
    tokens.save(str(source / "tokenizer.json"))
    record, out = adopted(lab, tmp_path / "cut", {"path": str(source)})
    assert any("truncation to 3 tokens" in warning for warning in record.metrics["warnings"])
    texts = [Tokenizer.from_file(str(folder / "tokenizer.json")).encode(adopt.SAMPLE).ids for folder in (plain, out)]
    assert texts[0] == texts[1] and len(texts[0]) > 3


def test_the_scales_tokenizer_can_stand_in_for_one_that_is_missing(lab, source, tmp_path):
    (source / "tokenizer.json").unlink()
    with pytest.raises(PipelineError, match=r"no tokenizer.json; `adopt: \{tokenizer: scale\}`"):
        adopted(lab, tmp_path, {"path": str(source)})
    origin = {"path": str(source), "tokenizer": "scale"}
    dag = Dag.load("smoke", grid_of(lab, tmp_path, origin))
    for job in dag.of("corpus"):
        shutil.copytree(lab.results / job.folder, tmp_path / "results" / job.folder)
    (job,) = dag.of("tokenizer")
    execute(dag, job, tokenizer.run, tmp_path / "results", CPU)
    record, out = adopted(lab, tmp_path, origin)
    assert record.metrics["tokenizer"] == "the scale's (words)"
    wanted = (tmp_path / "results" / job.folder / "tokenizer.json").read_bytes()
    assert (out / "tokenizer.json").read_bytes() == wanted
