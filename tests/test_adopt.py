"""Adopting a finished checkpoint: what is taken, what is refused and how it is said, and all that follows from it."""

import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from pipeline.artifact import Record, sha256_file
from pipeline.dag import Dag, Job
from pipeline.engines.hub_model import git_blob
from pipeline.errors import PipelineError
from pipeline.stage import execute
from pipeline.stages import adopt, tokenizer
from tests.checkpoints import CPU, Lab
from tests.repository import copy_repository, snakemake

NAME = "d32-E4-k2-50K-A37K"
MODEL = {"layers": 2, "rope_theta": 1.0e6, "sequence_length": 128}  # of the tiny checkpoint, as transformers has them


@pytest.fixture(scope="session")
def released(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as the paper's are released: shards with an index, a tokenizer without a chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    folder = tmp_path_factory.mktemp("released")
    model = AutoModelForCausalLM.from_pretrained(lab.checkpoint)
    tokens = AutoTokenizer.from_pretrained(lab.checkpoint)
    tokens.chat_template = None
    model.generation_config = GenerationConfig(bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id)
    model.save_pretrained(folder, max_shard_size="60KB")
    tokens.save_pretrained(folder)
    (folder / "README.md").write_text("A model card.\n")
    config = json.loads((folder / "config.json").read_text())  # as transformers 4 wrote it
    config |= {"rope_theta": config.pop("rope_parameters")["rope_theta"], "torch_dtype": config.pop("dtype")}
    del config["head_dim"]
    (folder / "config.json").write_text(json.dumps(config))
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def source(released: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may break."""
    return Path(shutil.copytree(released, tmp_path / "source"))


def grid_of(lab: Lab, folder: Path, origin: dict[str, Any], **point: Any) -> Path:
    """The lab's grid file with one point that adopts."""
    grid = yaml.safe_load(lab.config.read_text())
    line = {"hidden": 32, "experts": 4, "topk": 2} | point
    smoke = grid["scales"]["smoke"]
    smoke |= {"points": [line], "adopt": origin, "model": MODEL}
    folder.mkdir(exist_ok=True)
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid))
    shutil.copyfile(lab.config.with_name("sources.yaml"), folder / "sources.yaml")
    return folder / "grid.yaml"


def adopted(lab: Lab, folder: Path, origin: dict[str, Any], **point: Any) -> tuple[Record, Path]:
    """The record and the folder of the artifact."""
    dag = Dag.load("smoke", grid_of(lab, folder, origin, **point))
    (job,) = dag.of("adopt")
    return execute(dag, job, adopt.run, folder / "results", CPU), folder / "results" / job.folder


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    return {path.name: (sha256_file(path), path.stat().st_mtime_ns) for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------------ what is planned


def test_an_adopted_point_is_not_trained_and_only_the_data_that_tasks_ask_about_is_made(lab, tmp_path):
    dag = Dag.load("smoke", grid_of(lab, tmp_path, {"path": "some/{name}"}, grpo=True))
    (name,) = dag.points
    assert name == NAME and dag.points[name].adopt.path == f"some/{NAME}"
    assert {job.stage for job in dag.jobs} == {
        *("corpus", "adopt", "preflight", "grpo", "benchmark", "decode", "taskloss", "table", "figures", "report")
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


# ------------------------------------------------------------------------------------------------ what is refused


def test_a_wrong_digest_is_refused_with_the_file_and_both_digests(lab, source, tmp_path):
    name = "model-00003-of-00005.safetensors"
    found, wanted = sha256_file(source / name), "0" * 64
    with pytest.raises(PipelineError, match=f"{name}: SHA-256 wanted {wanted} .*, found {found}"):
        adopted(lab, tmp_path, {"path": str(source), "sha256": {name: wanted}})
    assert not list((tmp_path / "results" / "smoke").rglob("record.json"))
    with pytest.raises(PipelineError, match="modle.safetensors: .* not a file that is adopted"):
        adopted(lab, tmp_path, {"path": str(source), "sha256": {"modle.safetensors": wanted}})


def test_another_points_configuration_is_refused_field_by_field(lab, source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    changed = {"num_experts_per_tok": 4, "rope_theta": 5e5, "sliding_window": 64, "tie_word_embeddings": True}
    (source / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(PipelineError) as error:
        adopted(lab, tmp_path, {"path": str(source)})
    heading, columns, *lines = str(error.value).splitlines()
    assert heading == f"{source}: config.json is not that of point {NAME}:"
    assert columns.split() == ["point", "says", "checkpoint", "has"]
    assert [line.split() for line in lines] == [
        ["num_experts_per_tok", "2", "4"],
        ["rope_theta", "1000000.0", "500000.0"],
        ["tie_word_embeddings", "False", "True"],
        ["sliding_window", "None", "64"],
    ]


def test_another_architecture_or_scaled_positions_are_refused(lab, source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(PipelineError, match=r"architectures +\['MixtralForCausalLM'\] +\['LlamaForCausalLM'\]"):
        adopted(lab, tmp_path, {"path": str(source)})
    scaled = config | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    (source / "config.json").write_text(json.dumps(scaled))
    with pytest.raises(PipelineError, match=r"rope_type +default +linear"):
        adopted(lab, tmp_path, {"path": str(source)})


def test_tensors_that_are_not_the_points_are_refused_with_their_total(lab, released, source, tmp_path):
    """A checkpoint of 8 experts whose configuration claims 4."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = json.loads((source / "config.json").read_text())
    for path in source.glob("model*"):
        path.unlink()
    model = MixtralForCausalLM(MixtralConfig.from_dict(config | {"num_local_experts": 8}))
    model.save_pretrained(source)
    shutil.copyfile(released / "config.json", source / "config.json")
    with pytest.raises(PipelineError) as error:
        adopted(lab, tmp_path, {"path": str(source)})
    text = str(error.value)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert f"{source}: the set of tensors is not that of point {NAME}" in text
    assert re.search(rf"\n  parameters +49,568 +{total:,}\n", text)
    assert "model.layers.0.block_sparse_moe.gate.weight" in text and "[4, 32]" in text and "[8, 32]" in text
    assert "no such tensor" in text and "more tensors" in text


def test_pickled_weights_are_refused_with_the_reason(lab, source, tmp_path):
    for path in source.glob("model*"):
        path.unlink()
    (source / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(PipelineError, match="pytorch_model.bin: pickled weights, and loading a pickle runs"):
        adopted(lab, tmp_path, {"path": str(source)})


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_checkpoint_is_refused(lab, source, tmp_path, name):
    config = json.loads((source / name).read_text()) | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    (source / name).write_text(json.dumps(config))
    with pytest.raises(PipelineError, match=f"{name}: `auto_map` .*evil.Model.* never run"):
        adopted(lab, tmp_path, {"path": str(source)})


def test_a_truncated_shard_and_a_false_index_are_named(lab, source, tmp_path):
    index = source / "model.safetensors.index.json"
    before = index.read_text()
    index.write_text(
        before.replace('"model.embed_tokens.weight": "model-00002', '"model.embed_tokens.weight": "model-00001')
    )
    with pytest.raises(PipelineError, match="says 'model.embed_tokens.weight' is in model-00001.*it is in model-00002"):
        adopted(lab, tmp_path, {"path": str(source)})
    index.write_text(before.replace("model-00001-of", "../model-00001-of"))
    with pytest.raises(PipelineError, match="names files that the checkpoint does not have: ../model-00001"):
        adopted(lab, tmp_path, {"path": str(source)})
    index.write_text(before)
    shard = source / "model-00002-of-00005.safetensors"
    shard.write_bytes(shard.read_bytes()[:-50])
    with pytest.raises(PipelineError, match=f"{shard.name}: truncated or damaged"):
        adopted(lab, tmp_path, {"path": str(source)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_and_named(lab, source, tmp_path, value):
    from safetensors.torch import load_file, save_file

    shard = source / "model-00003-of-00005.safetensors"
    tensors = load_file(shard)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[:2] = value
    save_file(tensors, shard, metadata={"format": "pt"})
    said = f"{source}: {shard.name}: tensor '{name}' has 2 values that are NaN or infinite; fetch it again"
    with pytest.raises(PipelineError, match=re.escape(said)):
        adopted(lab, tmp_path, {"path": str(source)})


# ------------------------------------------------------------------------------------------------ the hub


class Hub(http.server.BaseHTTPRequestHandler):
    """What the hub's client asks of it: the commit of a revision, the files of a commit, and a file."""

    folder: Path
    commit = "c0ffee" + "0" * 34
    fetched: list[str]
    damaged: str | None = None

    def log_message(self, *_: Any) -> None: ...

    def answer(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/api/models/org/tiny/revision/main":
            body: Any = {"id": "org/tiny", "sha": self.commit, "siblings": []}
            return self.answer(json.dumps(body).encode(), {"Content-Type": "application/json"})
        if path.startswith(f"/api/models/org/tiny/tree/{self.commit}"):
            body = [self.entry(file) for file in sorted(self.folder.iterdir())]
            return self.answer(json.dumps(body).encode(), {"Content-Type": "application/json"})
        prefix = f"/org/tiny/resolve/{self.commit}/"
        if not path.startswith(prefix):
            return self.answer(b"{}", {"X-Error-Code": "RepoNotFound"}, 404)
        name = path.removeprefix(prefix)
        content = (self.folder / name).read_bytes()
        if self.command == "GET":
            self.fetched.append(name)
            if self.damaged == name:
                content = content[:-1] + b"\0"
        etag = hashlib.sha256((self.folder / name).read_bytes()).hexdigest()
        self.answer(content, {"X-Repo-Commit": self.commit, "ETag": f'"{etag}"'})

    do_HEAD = do_GET

    def entry(self, file: Path) -> dict[str, Any]:
        size, known = file.stat().st_size, {"type": "file", "path": file.name, "oid": git_blob(file)}
        if file.suffix == ".safetensors":
            known["lfs"] = {"oid": sha256_file(file), "size": size, "pointerSize": 130}
        return known | {"size": size}


@pytest.fixture
def hub(released: Path) -> Iterator[type[Hub]]:
    class Here(Hub):
        folder, fetched, damaged = released, [], None

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Here) as server:
        Here.endpoint = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Here
        server.shutdown()


def from_hub(hub: type[Hub], config: Path, name: str = NAME) -> subprocess.CompletedProcess[str]:
    """The stage's command line in a process of its own, since the client reads its address once."""
    command = [sys.executable, "-m", "pipeline.stages.adopt", "--config", str(config), "--scale", "smoke"]
    command += ["--point", name, "--results", str(config.with_name("results"))]
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_model_of_the_hub_is_fetched_at_the_commit_its_branch_stands_at(lab, hub, released, tmp_path):
    config = grid_of(lab, tmp_path, {"repo": "org/tiny", "revision": "main"})
    weights = "model-00002-of-00005.safetensors"
    hub.damaged = weights
    done = from_hub(hub, config)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"error: org/tiny@{hub.commit}: {weights}: digest " in done.stdout
    fetched = sorted(hub.fetched)
    assert set(fetched) == {path.name for path in released.iterdir()}

    hub.damaged, hub.fetched = None, []
    done = from_hub(hub, config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert hub.fetched == [weights], "what was there already is not fetched again"
    out = tmp_path / "results" / "smoke" / NAME / "adopt"
    metrics = Record.model_validate_json((out / "record.json").read_text()).metrics
    assert (metrics["origin"], metrics["commit"]) == ("org/tiny", hub.commit)
    assert [f"revision 'main' may move; it was {hub.commit}" in warning for warning in metrics["warnings"]] == [True]
    assert all((out / path.name).read_bytes() == path.read_bytes() for path in released.iterdir())


def test_a_repository_that_is_not_there_is_said_to_be(lab, hub, tmp_path):
    done = from_hub(hub, grid_of(lab, tmp_path, {"repo": "org/tiny-{name}", "revision": "main"}))
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert f"error: org/tiny-{NAME}@main: the hub does not give it: " in done.stdout


# ------------------------------------------------------------------------------------------------ all of it


def test_an_adopted_checkpoint_goes_through_every_evaluation_grpo_and_the_figures(lab, released, tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    copy_repository(folder)
    grid_of(lab, folder / "config", {"path": str(released)}, grpo=True)
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout[-5000:]
    results = folder / "results" / "smoke"
    table = pd.read_parquet(results / "table" / "results.parquet")
    for stage in ("benchmark", "decode", "taskloss"):
        assert set(table[table["stage"] == stage]["variant"]) == {"base", "grpo"}
    assert set(table["stage"]) == {"benchmark", "decode", "taskloss", "grpo"}
    figures = {entry["name"] for entry in json.loads((results / "figures" / "figures.json").read_text())}
    assert figures >= {"overview", "task_loss", "accuracy", "grpo", "self_consistency", "grpo_reward"}
    assert not figures & {"loss", "training"}
    page = (results / "report.html").read_text()
    assert "models adopted" in page and "models trained" not in page and str(released) in page
    assert "Nothing to be done" in snakemake(folder).stdout
