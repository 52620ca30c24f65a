"""Token files, and the upstream artifacts of pre-training, made without running the stages that make them for real."""

from pathlib import Path
from typing import Any

import yaml

from pipeline.dag.dag import Dag, Job
from pipeline.data.results import TokenizeMetrics
from pipeline.runner import Context, execute
from tests.helpers.config import whole_grid

EOD, WORDS = 0, 64


def write_tokens(prefix: Path, documents: int, seed: int) -> int:
    """Documents of a Markov chain over `WORDS` tokens with three successors each; returns the number of tokens."""
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    successors = np.random.default_rng(0).integers(1, WORDS, size=(WORDS, 3))
    rng = np.random.default_rng(seed)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    total = 0
    for _ in range(documents):
        ids = [int(rng.integers(1, WORDS))]
        for choice in rng.integers(0, 3, size=rng.integers(6, 30)):
            ids.append(int(successors[ids[-1], choice]))
        builder.add_document(torch.tensor([*ids, EOD]), [len(ids) + 1])
        total += len(ids) + 1
    builder.finalize(f"{prefix}.idx")
    return total


def _tokenizer(ctx: Context) -> dict[str, Any]:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = {"<|eod|>": EOD} | {f"w{i}": i for i in range(1, WORDS)}
    backend = Tokenizer(WordLevel(words, unk_token="<|eod|>"))
    backend.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eod|>", bos_token="<|eod|>")
    fast.save_pretrained(ctx.out)
    return {"vocab_size": WORDS, "eod_id": EOD, "adds_bos": False}


def _tokenize(ctx: Context) -> dict[str, Any]:
    seed = list(ctx.scale.data.sources).index(ctx.job.source or "")
    training = write_tokens(ctx.out / "train", 400, seed)
    held_out = write_tokens(ctx.out / "validation", 60, seed + 100)
    metrics = TokenizeMetrics(
        vocab_size=WORDS,
        eod_id=EOD,
        train_documents=400,
        train_tokens=training,
        validation_documents=60,
        validation_tokens=held_out,
        special_tokens_spelt={},
    )
    return metrics.plain()


def toy_dag(folder: Path, hidden: int = 32, model: dict[str, Any] | None = None, **pretrain: Any) -> Dag:
    """The smoke scale with one point and some keys changed, as a configuration below `folder`."""
    config = whole_grid()
    smoke = config["scales"]["smoke"]
    smoke["points"] = [{"hidden": hidden, "experts": 4, "topk": 2}]
    smoke["pretrain"] |= pretrain
    smoke["model"] |= model or {}
    for stage in ("grpo", "benchmark", "decode", "taskloss"):
        config["scales"]["mini"].pop(stage)
        smoke.pop(stage)
    config["scales"]["mini"]["points"] = smoke["points"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "grid.yaml").write_text(yaml.safe_dump(config))
    (folder / "sources.yaml").write_text(Path("config/sources.yaml").read_text())
    return Dag.load("smoke", folder / "grid.yaml")


def upstream(dag: Dag, results: Path) -> None:
    """Publish stand-ins for the scale's corpus, tokenizer and tokenize artifacts."""
    for job in dag.of("corpus"):
        execute(dag, job, lambda ctx: {}, results)
    execute(dag, Job("tokenizer", dag.name), _tokenizer, results)
    for job in dag.of("tokenize"):
        execute(dag, job, _tokenize, results)


def first_point(dag: Dag) -> str:
    return next(iter(dag.points))


def pretrain_job(dag: Dag) -> Job:
    return Job("pretrain", dag.name, point=first_point(dag))
