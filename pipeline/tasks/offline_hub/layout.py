"""Evaluation data in hub layout from the data sets' own published files, where the Hugging Face hub is out of reach.

    python -m pipeline.tasks.offline_hub.layout SOURCE OUT

SOURCE has a folder for each data set, with the file its authors (or the named repository) publish:

    gsm8k/{train,test}.jsonl              openai/grade-school-math
    humaneval/HumanEval.jsonl.gz          openai/human-eval
    humaneval_plus/HumanEvalPlus.jsonl.gz evalplus/humanevalplus_release
    mbpp/mbpp.jsonl                       google-research/google-research
    mbpp_plus/MbppPlus.jsonl.gz           evalplus/mbppplus_release
    triviaqa/triviaqa_sm_sub.jsonl        mosaicml/llm-foundry
    hellaswag/validation.jsonl.gz         klosax/hellaswag_text_data as JSON lines: query, endings, label

Those that are there are written as OUT/<repo>/..., with a README.md that names the splits, as `datasets` reads them,
and says what differs from the hub's. Give the folder as `path` of the data set in config/sources.yaml.

Some are not the hub's data. TriviaQA is a subset of 3,000 questions with short answers, of a split not stated.
HellaSwag is text that was cleaned before, cut into its columns again. Of both, the last items serve as the `train`
split that lm-eval draws worked examples from, and are not tested. HumanEval+ computes the right results when it tests,
by its reference solutions, which takes up to 7 CPU seconds (the hub's code_eval stops a program after 3, the sandbox
later); the hub's tests have the results written out. MBPP+ has its base tests only, as lm-eval's task does.
"""

import argparse
import ast
import gzip
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PipelineError
from pipeline.runtime.quiet import quietly
from pipeline.tasks.code.evalplus import plus_test
from pipeline.tasks.task import Row

WORKED_EXAMPLES = {"triviaqa": 500, "hellaswag": 1000}  # items kept from the end, where there is no train split
MBPP_SPLITS = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974)}  # by task_id

Splits = dict[str, list[Row]]


def read(path: Path) -> list[Row]:
    """The rows of a .jsonl or .jsonl.gz file.

    Raises:
        PipelineError: not JSON lines.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines if line.strip()]
    except (json.JSONDecodeError, gzip.BadGzipFile, UnicodeDecodeError, EOFError) as error:
        raise PipelineError(f"{path}: not JSON lines: {error}") from None


def write(out: Path, repo: str, config: str, folder: str, splits: Splits, note: str) -> None:
    """A data set as `datasets` reads it: `<repo>/<folder>/<split>-00000-of-00001.parquet` and a README.md."""
    # One schema for all splits: in one alone a list may always be empty, and its type unknown.
    schema = pa.Table.from_pylist([row for rows in splits.values() for row in rows]).schema
    for split, rows in splits.items():
        path = out / repo / folder / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema), path)
    files = "".join(f"  - split: {split}\n    path: {folder}/{split}-*\n" for split in splits)
    sizes = ", ".join(f"{split} {len(rows)}" for split, rows in splits.items())
    head = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n"
    text = f"\n{repo} in hub layout, made by `python -m pipeline.tasks.offline_hub.layout`. Rows: {sizes}.\n\n{note}\n"
    (out / repo / "README.md").write_text(head + text)


def gsm8k(source: Path, out: Path) -> None:
    splits = {split: read(source / f"{split}.jsonl") for split in ("train", "test")}
    write(out, "openai/gsm8k", "main", "main", splits, "The authors' files, unchanged.")


def humaneval(source: Path, out: Path) -> None:
    rows = read(source / "HumanEval.jsonl.gz")
    write(out, "openai/openai_humaneval", "openai_humaneval", "openai_humaneval", {"test": rows}, "Unchanged.")


def humaneval_plus(source: Path, out: Path) -> None:
    kept = ("task_id", "prompt", "canonical_solution", "entry_point")
    rows = [
        {name: row[name] for name in kept} | {"test": plus_test(row)} for row in read(source / "HumanEvalPlus.jsonl.gz")
    ]
    note = "`test` runs the reference solution for the right results, which the hub's tests have written out."
    write(out, "evalplus/humanevalplus", "default", "data", {"test": rows}, note)


def mbpp(source: Path, out: Path) -> None:
    rows = read(source / "mbpp.jsonl")
    splits = {
        name: [row for row in rows if first <= row["task_id"] <= last] for name, (first, last) in MBPP_SPLITS.items()
    }
    write(out, "google-research-datasets/mbpp", "full", "full", splits, "Split by task_id as its authors say.")


def mbpp_plus_row(row: Row) -> Row:
    """A row of the release in the hub's form: the problem's sentence alone, and its assertions one by one."""
    sentence = row["prompt"].strip().strip('"').strip("\n").partition("\nassert")[0]
    tests = [ast.get_source_segment(row["assertion"], node) for node in ast.parse(row["assertion"]).body]
    return {
        "task_id": int(row["task_id"].removeprefix("Mbpp/")),
        "code": row["canonical_solution"],
        "prompt": sentence,
        "test_imports": [],
        "test_list": [test for test in tests if test and test.startswith("assert")],
        "test": row["assertion"],
    }


def mbpp_plus(source: Path, out: Path) -> None:
    rows = [mbpp_plus_row(row) for row in read(source / "MbppPlus.jsonl.gz")]
    note = (
        "`test` and `test_list` hold the base tests (lm-eval reads `test_list` only), without the extended inputs. "
        "The release leaves out web addresses that 18 of the hub's prompts have."
    )
    write(out, "evalplus/mbppplus", "default", "data", {"test": rows}, note)


def triviaqa(source: Path, out: Path) -> None:
    rows = [
        {
            "question": row["context"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "question_id": f"llm-foundry-{i}",
            "answer": {"aliases": row["aliases"], "value": row["answer"]},
        }
        for i, row in enumerate(read(source / "triviaqa_sm_sub.jsonl"))
    ]
    shots = WORKED_EXAMPLES["triviaqa"]
    splits = {"train": rows[-shots:], "validation": rows[:-shots]}
    note = (
        "NOT the whole of rc.nocontext: a subset of 3,000 questions with answers of at most 10 tokens. `train` is the "
        f"last {shots} of them, only for worked examples."
    )
    write(out, "mandarjoshi/trivia_qa", "rc.nocontext", "rc.nocontext", splits, note)


def hellaswag_row(i: int, row: Row) -> Row:
    """A cleaned text in HellaSwag's columns.

    The context's last part, begun in lower case after a sentence, is ActivityNet's `ctx_b`, which lm-eval capitalises.
    """
    label, _, context = row["query"].partition(": ")
    parts = re.fullmatch(r"(.*[.!?])\s+([a-z].*)", context, re.DOTALL)
    first, second = parts.groups() if parts else (context, "")
    return {
        "ind": i,
        "activity_label": label,
        "ctx_a": first,
        "ctx_b": second,
        "ctx": context,
        "endings": row["endings"],
        "label": str(row["label"]),
    }


def hellaswag(source: Path, out: Path) -> None:
    rows = [hellaswag_row(i, row) for i, row in enumerate(read(source / "validation.jsonl.gz"))]
    shots = WORKED_EXAMPLES["hellaswag"]
    splits = {"train": rows[-shots:], "validation": rows[:-shots]}
    note = (
        "From text that was cleaned before (WikiHow's marks are gone), cut into columns again; source ids are missing. "
        f"`train` is the last {shots} of the 10,042 validation items, only for worked examples."
    )
    write(out, "Rowan/hellaswag", "default", "data", splits, note)


MAKERS: dict[str, Callable[[Path, Path], None]] = {
    maker.__name__: maker for maker in (gsm8k, humaneval, humaneval_plus, mbpp, mbpp_plus, triviaqa, hellaswag)
}


def lay_out(source: Path, out: Path) -> list[str]:
    """Write every data set of which there is a folder; returns their names.

    Raises:
        PipelineError: there is none, or a file is missing, damaged or has other columns.
    """
    names = [name for name in MAKERS if (source / name).is_dir()]
    if not names:
        raise PipelineError(f"{source}: holds none of the folders {', '.join(MAKERS)}")
    for name in names:
        try:
            MAKERS[name](source / name, out)
        except FileNotFoundError as error:
            usage = "`python -m pipeline.tasks.offline_hub.layout -h`"
            raise PipelineError(f"{error.filename}: no such file; {usage}") from None
        except (KeyError, TypeError) as error:
            raise PipelineError(f"{source / name}: rows are not those of {name}: {error!r}") from None
    return names


@quietly()
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.tasks.offline_hub.layout",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    try:
        names = lay_out(args.source, args.out)
    except PipelineError as error:
        sys.exit(f"error: {error}")
    for readme in sorted(args.out.glob("*/*/README.md")):
        print(readme.read_text().rpartition("---\n")[2].strip().partition("\n")[0])
    print(f"{args.out}: {', '.join(names)}")


if __name__ == "__main__":
    main()
