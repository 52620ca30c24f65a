"""Task loss: negative log-likelihood of the gold answer given the prompt, by vLLM's prompt log-probabilities.

    python -m pipeline.stages.taskloss --scale mini --point d32-E8-k2-107K-A51K --variant base

The paper's task loss (Figures 1, 2 and 5) and the bits per token and per byte of its released evaluation.

What is scored is `Task.continuation`: the separating space and the answer as the training text writes it, without the
end-of-document token; for tasks marked `loss_on_gold` (recall), the final answer alone. The variant `authors` leaves
the space out, as the authors' files do, and takes for the answer's tokens those of the joint text beyond as many as the
prompt has by itself, as their program does.

Prompt and continuation are tokenised as one text, as in training. A token counts as the answer's if it ends after the
boundary between the two, that is, if it holds at least one character of the continuation; one that also holds
characters of the prompt "straddles", and the record counts the items that have one. For a byte-level tokenizer
a character may be several tokens: each of them counts.

Out: items.parquet, a row per item: task, shots, options (what else tells this entry of taskloss.tasks from others of
the task), item, nll_nats (the sum over the answer's tokens), tokens, bytes (UTF-8, of the continuation), bits_token,
bits_byte, straddles.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.sources.facts import VALUES, VALUES_PER_FACT
from pipeline.engines import vllm as engine
from pipeline.errors import PipelineError
from pipeline.runner import Context, main
from pipeline.tasks import OWN, TASKS
from pipeline.tasks.items import Question, Row, in_chunks, read_questions, with_answer
from pipeline.tasks.prompts import check_bos, first_ids, prepend
from pipeline.tasks.results import ResultRow, mean_row, of_entry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from vllm import LLM

CHUNK = 1024  # items between two saves
FACT_BITS = VALUES_PER_FACT * math.log2(VALUES)


def continuation(question: Question, variant: str = "spaced") -> str:
    """The text scored after the prompt."""
    task = TASKS[question.task]
    answer = (question.gold or "") if task.loss_on_gold else question.answer
    return answer if variant == "authors" else task.continuation(answer)


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    answer: str,
    variant: str = "spaced",
    add_bos: bool | None = None,
) -> tuple[list[int], list[int], bool]:
    """Tokenise prompt + answer as one text.

    Returns:
        The token ids; the positions of those that hold a character of the answer; whether one of them also holds
        characters of the prompt. In the variant `authors`: the positions beyond as many as the prompt has by itself;
        whether these are not the same positions.
    """
    first = first_ids(tokenizer, add_bos)
    encoded = tokenizer(prompt + answer, add_special_tokens=False, return_offsets_mapping=True)
    ids = prepend(first, encoded["input_ids"])
    offsets = [(0, 0)] * (len(ids) - len(encoded["input_ids"])) + encoded["offset_mapping"]
    boundary = len(prompt)
    positions = [i for i, (_, end) in enumerate(offsets) if end > boundary]
    if variant == "authors":
        begin = len(prepend(first, tokenizer(prompt, add_special_tokens=False)["input_ids"]))
        return ids, list(range(begin, len(ids))), positions != list(range(begin, len(ids)))
    return ids, positions, any(offsets[i][0] < boundary for i in positions)


def score(
    llm: "LLM",
    questions: Sequence[Question],
    max_length: int,
    variant: str = "spaced",
    add_bos: bool | None = None,
) -> list[Row]:
    """One row of items.parquet for each question.

    Raises:
        PipelineError: an item that leaves no room in `max_length` for the one token that vLLM always generates.
    """
    from vllm import SamplingParams

    tokenizer = llm.get_tokenizer()
    encoded = [
        encode(tokenizer, question.prompt, continuation(question, variant), variant, add_bos) for question in questions
    ]
    for question, (ids, _, _) in zip(questions, encoded, strict=True):
        if len(ids) >= max_length:
            raise PipelineError(
                f"task '{question.task}', item {question.item}: {len(ids)} tokens where taskloss.max_length "
                f"{max_length} leaves room for {max_length - 1}; raise it or give fewer shots"
            )
    # Log-probabilities of the prompt's own tokens only. vLLM itself does not serve prompts from its prefix cache when
    # their log-probabilities are asked for.
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids, _, _ in encoded], params, use_tqdm=False)
    rows = []
    for question, (ids, positions, straddles), output in zip(questions, encoded, outputs, strict=True):
        logprobs = [output.prompt_logprobs[i][ids[i]].logprob for i in positions]
        engine.check_finite(f"task '{question.task}', item {question.item}", logprobs)
        nll = -sum(logprobs)
        size = len(continuation(question, variant).encode())
        rows.append(
            {
                "task": question.task,
                "item": question.item,
                "nll_nats": nll,
                "tokens": len(positions),
                "bytes": size,
                "bits_token": nll / math.log(2) / len(positions),
                "bits_byte": nll / math.log(2) / size,
                "straddles": straddles,
            }
        )
    return rows


def summarise(task: str, rows: list[Row]) -> list[ResultRow]:
    """Means over items with standard errors.

    nll is in nats per token, nll_item in nats per item. For facts also stored_bits: FACT_BITS less the bits the model
    still needs, averaged over facts and clipped at 0 (a model may be more wrong than a uniform guess).
    """
    results = [
        mean_row(task, "nll", [row["nll_nats"] / row["tokens"] for row in rows]),
        mean_row(task, "nll_item", [row["nll_nats"] for row in rows]),
        mean_row(task, "bits_token", [row["bits_token"] for row in rows]),
        mean_row(task, "bits_byte", [row["bits_byte"] for row in rows]),
    ]
    if task in OWN and OWN[task].source_kind == "facts":
        stored = mean_row(task, "stored_bits", [FACT_BITS - row["nll_nats"] / math.log(2) for row in rows])
        results.append(stored | {"value": max(0.0, stored["value"])})
    return results


def run(ctx: Context) -> dict[str, Any]:
    config = ctx.scale.taskloss
    assert config is not None
    check_bos(ctx.inputs["checkpoint"], config.add_bos)
    asked, left_out = [], 0
    for task in config.tasks:
        scored_text = "gold" if TASKS[task.task].loss_on_gold else "answer"
        questions, without = with_answer(read_questions(ctx.items_folder(task.task), task, task.seed), scored_text)
        asked.append((task, questions))
        left_out += without
    with engine.quick_imports():
        from vllm import LLM
    settings = engine.options(config.dtype, config.max_length, seed=0, execution=ctx.execution)
    results, rows = [], []
    with engine.serving(LLM, ctx.inputs["checkpoint"], settings) as llm:
        for i, (task, questions) in enumerate(asked):
            ask = partial(score, llm, max_length=config.max_length, variant=task.variant, add_bos=config.add_bos)
            scored = in_chunks(ctx.state, f"{i}-{task.task}", questions, CHUNK, ask, ctx.progress)
            means = summarise(task.task, scored)
            ctx.say(f"{task.task}, shots {task.shots}: {means[0]['value']:.4f} nats per token over {len(scored)} items")
            results += of_entry(task, means)
            rows += of_entry(task, scored)
    pq.write_table(pa.Table.from_pylist(rows), ctx.out / "items.parquet")
    return {
        "results": results,
        "straddling_items": sum(row["straddles"] for row in rows),
        "items_without_answer": left_out,
    }


if __name__ == "__main__":
    main("taskloss", run, __doc__)
