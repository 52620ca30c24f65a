"""Speed and memory of tokenising, against what a user would use instead, at two sizes of one corpus.

    python benchmarks/tokenizing.py --model data/tokenizers/llm-jp-v3/llm-jp-tokenizer-100k.ver3.0b1.model

The corpus is the source of Python's own library, a file a document, repeated to 20 MB and to 200 MB of JSON lines.
Each way runs in a process of its own; CPU seconds and the growth of its peak memory are of the work, without imports.

    corpus       this pipeline's corpus stage: JSON lines to Parquet documents
    tokenize     this pipeline's tokenize stage, from there to .bin/.idx with a held-out split
    megatron     a line of JSON at a time, SentencePiece, IndexedDatasetBuilder: what Megatron's preprocess_data does
    datasets     datasets.map over the lines with the converted tokenizer.json, batches of 1,000, saved as Arrow
"""

import argparse
import json
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import yaml

from pipeline.dag.dag import Dag, Job
from pipeline.runner import execute
from pipeline.runtime.execution import Execution, prepare_environment
from pipeline.runtime.quiet import quietly
from tests.helpers.config import whole_grid

WAYS = ("corpus", "tokenize", "megatron", "datasets")


def write_corpus(path: Path, megabytes: int) -> int:
    """The standard library as JSON lines of at least that many bytes of text; returns the bytes of text."""
    sources = [p.read_text(errors="ignore") for p in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))[:2000]]
    texts = [text for text in sources if text]
    written = 0
    with path.open("w") as file:
        while written < megabytes * 1_000_000:
            for text in texts:
                file.write(json.dumps({"text": text}) + "\n")
                written += len(text.encode())
                if written >= megabytes * 1_000_000:
                    break
    return written


def configure(folder: Path, model: Path) -> Dag:
    """A scale with the lines as its one source and the SentencePiece model as its tokenizer."""
    grid = whole_grid()
    scale = grid["scales"]["smoke"]
    scale["data"] = {"tokenizer": "bench", "sources": {"lines": 1.0}, "validation": 0.01}
    scale["model"] = {"layers": 2, "vocab_size": 99_584}
    scale |= {"points": [{"hidden": 32, "experts": 4, "topk": 2}]}
    scale |= {"grpo": None, "benchmark": None, "decode": None, "taskloss": None}
    source = {"kind": "local", "path": str(folder / "lines.jsonl"), "licence": "PSF"}
    tokenizer = {"kind": "file", "model_file": str(model.resolve()), "eod": "</s>", "licence": "see the model's"}
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid))
    (folder / "sources.yaml").write_text(
        yaml.safe_dump({"datasets": {"lines": source}, "tokenizers": {"bench": tokenizer}})
    )
    return Dag.load("smoke", folder / "grid.yaml")


def by_megatron(lines: Path, model: Path, to: Path) -> None:
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(model))
    builder = IndexedDatasetBuilder(f"{to}.bin", dtype=DType.optimal_dtype(pieces.get_piece_size()))
    with lines.open() as file:
        for line in file:
            ids = [*pieces.encode(json.loads(line)["text"]), pieces.eos_id()]
            builder.add_document(ids, [len(ids)])
    builder.finalize(f"{to}.idx")


def by_datasets(lines: Path, json_file: Path, to: Path) -> None:
    from datasets import load_dataset
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_file=str(json_file))
    rows = load_dataset("json", data_files=str(lines), split="train", cache_dir=str(to / "cache"))
    encoded = rows.map(
        lambda batch: {"input_ids": fast(batch["text"], add_special_tokens=False)["input_ids"]},
        batched=True,
        remove_columns=rows.column_names,
    )
    encoded.save_to_disk(str(to / "tokens"))


def run_one(way: str, folder: Path, model: Path) -> None:
    """One way, in this process; prints its CPU seconds, its growth and its peak in MiB."""
    prepare_environment(Execution(device="cpu"))
    results, dag = folder / "results", configure(folder, model)
    if way in ("corpus", "tokenize"):
        from pipeline.engines.megatron import data  # noqa: F401 (imported before the clock starts)
        from pipeline.stages import corpus, tokenize, tokenizer

        if way == "tokenize":
            execute(dag, Job("tokenizer", dag.name), tokenizer.run, results)
    elif way == "megatron":
        from megatron.core.datasets import indexed_dataset  # noqa: F401
    else:
        import datasets
        import transformers  # noqa: F401

        datasets.disable_progress_bars()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu = time.process_time()
    match way:
        case "corpus":
            execute(dag, Job("corpus", dag.name, source="lines"), corpus.run, results)
        case "tokenize":
            execute(dag, Job("tokenize", dag.name, source="lines"), tokenize.run, results)
        case "megatron":
            by_megatron(folder / "lines.jsonl", model, folder / "megatron")
        case "datasets":
            json_file = results / dag.name / "data" / "tokenizer" / "tokenizer.json"
            by_datasets(folder / "lines.jsonl", json_file, folder / "datasets")
    cpu = time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print("MEASURED", cpu, (peak - before) / 1024, peak / 1024)


@quietly()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a SentencePiece unigram .model with </s>")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="default: all (datasets needs tokenize)")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        return run_one(args.run[0], Path(args.run[1]), args.model)
    print(f"{'way':10} {'MB':>5} {'MB a CPU s':>11} {'CPU s':>7} {'growth MiB':>11} {'peak MiB':>9}", flush=True)
    for megabytes in args.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            size = write_corpus(Path(folder, "lines.jsonl"), megabytes) / 1e6
            for way in args.ways:
                command = [sys.executable, __file__, "--model", str(args.model), "--run", way, folder]
                done = subprocess.run(command, capture_output=True, text=True)
                measured = [line for line in done.stdout.splitlines() if line.startswith("MEASURED")]
                if not measured:
                    sys.exit(f"{way} failed:\n{done.stdout}{done.stderr}")
                cpu, growth, peak = map(float, measured[0].split()[1:])
                print(f"{way:10} {size:5.0f} {size / cpu:11.1f} {cpu:7.1f} {growth:11.0f} {peak:9.0f}", flush=True)


if __name__ == "__main__":
    main()
