"""Published evaluation data for tests: the real files where they are at hand, else small ones of the same form."""

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import yaml

from pipeline.dag.dag import Dag
from pipeline.runner import Context, execute
from pipeline.stages import benchdata
from pipeline.tasks.offline_hub import layout
from tests.helpers.checkpoints import CPU, Lab
from tests.helpers.config import whole_grid

SHARED = Path(os.environ.get("MOE_SPARSITY_SHARED", Path(__file__).parents[3] / "shared"))
ORIGINALS = SHARED / "data"  # originals of the data sets, as `hub_layout` reads them
ABSENT = f"{SHARED}: the data sets' original files are not on this machine (MOE_SPARSITY_SHARED names their folder)"
CONTEXT = 2560
SHOTS = {"triviaqa": 4, "hellaswag": 4, "gsm8k": 4, "gsm_plus": 5, "mbpp": 3, "mbpp_plus": 3}
SHOTS |= {"humaneval": 0, "humaneval_plus": 0}
LOSSES = {"gsm8k": 4, "gsm_plus": 5, "triviaqa": 4, "hellaswag": 4, "humaneval_plus": 0, "mbpp_plus": 0}

Row = dict[str, Any]


def written(path: Path, rows: list[Row]) -> None:
    """Rows as JSON lines, compressed if the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def sum_row(i: int) -> Row:
    """A made-up word problem in GSM8K's form."""
    question = f"Anna has {i} pears and buys {i + 3} more for $2 each. How many has she now?"
    return {"question": question, "answer": f"She has {i}+{i + 3} = <<{i}+{i + 3}={2 * i + 3}>>.\n#### {2 * i + 3}"}


def made_up(folder: Path) -> None:
    """Small originals of every data set that `hub_layout` knows: the columns are the real ones, the content is not."""
    for split, first in (("train", 0), ("test", 100)):
        written(folder / "gsm8k" / f"{split}.jsonl", [sum_row(first + i) for i in range(20)])
    code = [
        {
            "task_id": f"HumanEval/{i}",
            "prompt": f'def add{i}(a):\n    """ Add {i} to a.\n    """\n',
            "canonical_solution": f"    return a + {i}\n",
            "entry_point": f"add{i}",
            "test": f"\ndef check(candidate):\n    assert candidate(1) == {i + 1}\n",
            "base_input": [[1]],
            "plus_input": [[0], [2.5]],
            "atol": 0,
        }
        for i in range(4)
    ]
    names = ("task_id", "prompt", "canonical_solution", "entry_point", "test")
    written(folder / "humaneval" / "HumanEval.jsonl.gz", [{name: row[name] for name in names} for row in code])
    written(folder / "humaneval_plus" / "HumanEvalPlus.jsonl.gz", code)
    programs = [
        {
            "task_id": i,
            "text": f"Write a function to add {i} to a number.",
            "code": f"def plus{i}(a):\r\n  return a + {i}",
            "test_setup_code": "",
            "test_list": [f"assert plus{i}({n}) == {n + i}" for n in range(3)],
            "challenge_test_list": [],
        }
        for i in (*range(1, 21), 520, *range(601, 606))
    ]
    written(folder / "mbpp" / "mbpp.jsonl", programs)
    plus = [
        {
            "task_id": f"Mbpp/{row['task_id']}",
            "prompt": f'"""\n{row["text"]}\n{row["test_list"][0]}\n"""\n',
            "canonical_solution": "\n" + row["code"].replace("\r", "") + "\n",
            "assertion": "\n" + "\n".join(row["test_list"]) + "\n",
        }
        for row in programs[:6]
    ]
    written(folder / "mbpp_plus" / "MbppPlus.jsonl.gz", plus)
    facts = [
        {
            "context": f"Question: Who wrote book {i}?\nAnswer:",
            "answer": f"Author {i}",
            "aliases": [f"A. {i}", f"Author {i}"],
        }
        for i in range(20)
    ]
    written(folder / "triviaqa" / "triviaqa_sm_sub.jsonl", facts)
    scenes = [
        {
            "query": f"Cooking: A woman holds {i} eggs. she",
            "endings": [f"breaks {n + i} of them." for n in range(4)],
            "label": i % 4,
        }
        for i in range(20)
    ]
    written(folder / "hellaswag" / "validation.jsonl.gz", scenes)


def made_up_gsm_plus(hub: Path) -> None:
    """GSM-Plus with made-up questions in the hub's columns: its licence keeps it out of this repository."""
    rows = [
        {
            **{key: sum_row(i)["question"] for key in ("question", "seed_question")},
            **{key: sum_row(i)["answer"] for key in ("solution", "seed_solution")},
            **{key: str(2 * i + 3) for key in ("answer", "seed_answer")},
            "perturbation_type": "numerical substitution",
        }
        for i in range(200, 240)
    ]
    layout.write(hub, "qintongli/GSM-Plus", "default", "data", {"test": rows}, "Made up, for tests.")


def lay_out(folder: Path) -> Path:
    """A hub of all eight data sets below `folder`, from the real originals if they are here."""
    originals = ORIGINALS if ORIGINALS.is_dir() else folder / "originals"
    shots = dict(layout.WORKED_EXAMPLES)
    if originals != ORIGINALS:
        made_up(originals)
        layout.WORKED_EXAMPLES.update(triviaqa=8, hellaswag=8)
    try:
        layout.lay_out(originals, folder / "hub")
    finally:
        layout.WORKED_EXAMPLES.update(shots)
    made_up_gsm_plus(folder / "hub")
    return folder / "hub"


def save_checkpoint(ctx: Context, texts: list[str]) -> Row:
    """A random Mixtral with a byte-level BPE of these texts."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2048, special_tokens=["<eod>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eod>", pad_token="<eod>", clean_up_tokenization_spaces=False
    )
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=2048,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    MixtralForCausalLM(config).save_pretrained(ctx.out)
    tokens.save_pretrained(ctx.out)
    return {}


def build(folder: Path) -> Lab:
    """A lab whose one point is asked all eight stock tasks (GSM8K also without shots) and all six task-loss sets.

    Three items each.
    """
    hub = lay_out(folder)
    grid = whole_grid()
    sources = yaml.safe_load(Path("config/sources.yaml").read_text())
    for data in sources["benchmarks"].values():
        data["path"] = str(hub / data["repo"])
    stock = [{"task": task, "shots": shots, "limit": 3} for task, shots in SHOTS.items()]
    stock.append({"task": "gsm8k", "shots": 0, "limit": 3})
    losses = [{"task": task, "shots": shots, "limit": 3} for task, shots in LOSSES.items()]
    grid["scales"]["smoke"] |= {
        "points": [{"hidden": 32, "experts": 4, "topk": 2}],
        "model": {"layers": 2, "sequence_length": CONTEXT},
        "benchmark": {"tasks": stock, "max_length": CONTEXT, "dtype": "fp32"},
        "taskloss": {"tasks": losses, "max_length": CONTEXT, "dtype": "fp32"},
        "decode": {"tasks": [{"task": "gsm8k", "limit": 3}], "samples": 4, "max_tokens": 24, "dtype": "fp32"},
    }
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid))
    (folder / "sources.yaml").write_text(yaml.safe_dump(sources))
    lab = Lab(folder / "grid.yaml", folder / "results", Dag.load("smoke", folder / "grid.yaml"))
    for job in lab.dag.of("benchdata"):
        execute(lab.dag, job, benchdata.run, lab.results, CPU)
    for stage in ("corpus", "tokenizer", "tokenize", "pretrain"):
        for job in lab.dag.of(stage):
            execute(lab.dag, job, lambda ctx: {}, lab.results, CPU)
    texts = [text for path in hub.glob("*/*/*/*.parquet") for text in sample_text(path)]
    execute(lab.dag, lab.job("convert"), lambda ctx: save_checkpoint(ctx, texts), lab.results, CPU)
    return lab


def sample_text(path: Path) -> list[str]:
    """Some of a file's rows as text, to train a tokenizer on."""
    import pyarrow.parquet as pq

    rows = pq.read_table(path).slice(0, 200).to_pylist()
    random.Random(0).shuffle(rows)
    return ["\n".join(str(value)[:2000] for value in row.values()) for row in rows]
