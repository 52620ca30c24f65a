"""What searching text for benchmarks' questions costs, beside tokenising the same text, in one run.

    python benchmarks/contamination.py --model data/tokenizers/llm-jp-v3/llm-jp-tokenizer-100k.ver3.0b1.model

The text is the source of Python's own library, a file a document, repeated to `--megabytes`; with `--short` it is cut
into documents of a few lines. The questions are 20,000 made of the text's own words, 10 to 60 of them in random order,
or the column `question` of `--questions` files (test.parquet of benchdata artifacts). Both parts run `--repeats` times
in turn, and the least CPU time of each counts, because other work on the machine adds to it.

    search       pipeline/data/intake.py, as the corpus stage does it
    tokenize     SentencePiece's ids alone, without writing them: the tokenize stage takes more
"""

import argparse
import random
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
from sentencepiece import SentencePieceProcessor

from pipeline.data.contamination import Questions
from pipeline.data.intake import Row, searched

GROUP = 1_000_000  # characters tokenised at a time, as in a corpus


def read_texts(megabytes: float, short: bool) -> list[str]:
    """The standard library's files, or their paragraphs, repeated to that many bytes."""
    files = [p.read_text(errors="ignore") for p in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))[:2000]]
    texts = [part for text in files for part in (text.split("\n\n") if short else [text]) if part.strip()]
    found: list[str] = []
    size = 0
    while size < megabytes * 1e6:
        for text in texts:
            found.append(text)
            if (size := size + len(text.encode())) >= megabytes * 1e6:
                break
    return found


def make_questions(texts: list[str]) -> dict[str, list[str]]:
    rng = random.Random(0)
    words = " ".join(texts[:2000])[:20_000_000].split()
    return {"made up": [" ".join(rng.choices(words, k=rng.randrange(10, 60))) for _ in range(20_000)]}


def tokenize(pieces: SentencePieceProcessor, texts: list[str]) -> None:
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        if (size := size + len(text)) > GROUP:
            pieces.encode(group, num_threads=1)
            group, size = [], 0
    pieces.encode(group, num_threads=1)


def cpu_seconds(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a SentencePiece .model")
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--short", action="store_true", help="documents of a few lines")
    parser.add_argument("--questions", type=Path, nargs="+", help="Parquet files with a column `question`")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    texts = read_texts(args.megabytes, args.short)
    size = sum(len(text.encode()) for text in texts) / 1e6
    tests = {str(path): pq.read_table(path)["question"].to_pylist() for path in args.questions or []}
    questions = Questions(tests or make_questions(texts))
    pieces = SentencePieceProcessor(model_file=str(args.model))
    parts: dict[str, Callable[[], object]] = {
        "search": lambda: sum(
            bool(row.hits) for row in searched((Row(0, i, t) for i, t in enumerate(texts)), questions)
        ),
        "tokenize": lambda: tokenize(pieces, texts),
    }
    taken = {name: min(cpu_seconds(work) for _ in range(args.repeats)) for name, work in parts.items()}
    print(f"{len(texts):,} documents, {size:.1f} MB; {len(questions.texts):,} questions")
    for name, seconds in taken.items():
        print(f"{name:9} {seconds:7.2f} CPU s {size / seconds:7.1f} MB per CPU second")
    print(f"search takes {taken['search'] / taken['tokenize']:.2f} of tokenize")


if __name__ == "__main__":
    main()
