"""A tiny Mixtral checkpoint and the artifacts around it, for tests of what evaluates one."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from pipeline.artifacts.progress import Progress
from pipeline.artifacts.record import Record
from pipeline.dag.dag import Dag, Job
from pipeline.runner import Context, execute
from pipeline.runtime.execution import Execution
from pipeline.stages import corpus, tokenizer
from tests.helpers.config import whole_grid

CPU = Execution(device="cpu", memory_mb=64)
TASKS = {
    "benchmark": {
        "tasks": [
            {"task": "recall", "limit": 24, "shots": 2},
            {"task": "recall_choice", "limit": 16, "shots": 1},
            {"task": "sums", "limit": 96, "shots": 1},
        ],
        "max_length": 128,
        "dtype": "fp32",
    },
    "decode": {"tasks": [{"task": "sums", "limit": 96}], "samples": 4, "max_tokens": 24, "dtype": "fp32"},
    "taskloss": {
        "tasks": [{"task": "recall", "limit": 24}, {"task": "sums", "limit": 24, "shots": 1}],
        "max_length": 128,
        "dtype": "fp32",
    },
}


def train(ctx: Context, texts: list[str], steps: int) -> dict[str, Any]:
    """Write a `MixtralForCausalLM` (hidden 32, 4 experts) and its tokenizer, trained on `texts` by plain transformers.

    Deterministic; 300 steps take six CPU seconds, after which it answers in the right form and sometimes rightly.
    """
    import torch
    from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    tokens = AutoTokenizer.from_pretrained(ctx.inputs["tokenizer"])
    eod: int = tokens.eos_token_id
    config = MixtralConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=128,
        initializer_range=0.1,
        bos_token_id=eod,
        eos_token_id=eod,
        pad_token_id=eod,
    )
    model: Any = MixtralForCausalLM(config)
    stream = [token for ids in tokens(texts)["input_ids"] for token in ids]
    rows = torch.tensor(stream[: len(stream) // 48 * 48]).view(-1, 48)
    draw = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        batch = rows[draw.sample(range(len(rows)), 16)]
        model(input_ids=batch, labels=batch).loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(ctx.out)
    tokens.save_pretrained(ctx.out)
    return {}


@dataclass(frozen=True)
class Lab:
    """A results folder whose one point has a converted checkpoint, ready to be evaluated."""

    config: Path
    results: Path
    dag: Dag

    @classmethod
    def build(cls, folder: Path) -> "Lab":
        """Real corpora and tokenizer, empty stand-ins for what a checkpoint is made from, and a trained checkpoint."""
        grid = whole_grid()
        sources = yaml.safe_load(Path("config/sources.yaml").read_text())
        smoke = grid["scales"]["smoke"] | TASKS | {"points": [{"hidden": 32, "experts": 4, "topk": 2}]}
        smoke["model"] = smoke["model"] | {"sequence_length": 128}  # the checkpoint's
        grid["scales"]["smoke"] = smoke
        sources["datasets"]["sums-smoke"] |= {"test_items": 96, "documents": 2000, "modulus": 7}
        (folder / "grid.yaml").write_text(yaml.safe_dump(grid))
        (folder / "sources.yaml").write_text(yaml.safe_dump(sources))
        lab = cls(folder / "grid.yaml", folder / "results", Dag.load("smoke", folder / "grid.yaml"))
        for job in lab.dag.of("corpus"):
            execute(lab.dag, job, corpus.run, lab.results, CPU)
        execute(lab.dag, Job("tokenizer", "smoke"), tokenizer.run, lab.results, CPU)
        for job in [*lab.dag.of("tokenize"), *lab.dag.of("pretrain")]:
            execute(lab.dag, job, lambda ctx: {}, lab.results, CPU)
        shards = sorted(lab.results.glob("smoke/data/*/corpus/documents-*.parquet"))
        texts = [text for shard in shards for text in pq.read_table(shard)["text"].to_pylist()]
        random.Random(0).shuffle(texts)
        execute(lab.dag, lab.job("convert"), lambda ctx: train(ctx, texts, 300), lab.results, CPU)
        return lab

    def job(self, stage: str) -> Job:
        return self.dag.of(stage)[0]

    def folder(self, stage: str) -> Path:
        return self.results / self.job(stage).folder

    @property
    def checkpoint(self) -> Path:
        return self.folder("convert")

    def run(self, stage: Any, results: Path | None = None) -> Record:
        """Run an evaluation stage's module through the runner, by default where the checkpoint lies."""
        name = stage.__name__.rpartition(".")[2]
        return execute(self.dag, self.job(name), stage.run, results or self.results, CPU)

    def rows(self, stage: str, file: str) -> list[dict[str, Any]]:
        """The rows of a Parquet file of a stage's artifact."""
        return pq.read_table(self.folder(stage) / file).to_pylist()

    def context(self, stage: str) -> Context:
        """What the stage's `run` would be given."""
        job = self.job(stage)
        inputs = {name: self.results / upstream.folder for name, upstream in self.dag.inputs(job).items()}
        state, out = self.results / "state", self.results / "out"
        return Context(job, self.dag, inputs, state, out, CPU, Progress(state), self.results / "logs")
