"""Decode: self-consistency on vLLM; accuracy as a function of the number of samples per question.

    python -m pipeline.stages.decode --scale mini --point d32-E8-k2-107K-A51K --variant base

The paper's test-time compute (Figures 6 and 11): GSM8K, zero-shot, up to 128 samples, majority vote; temperature 0.6
and top-p 0.95 are its released script's.

For n = 1, 2, 4 ... samples:
- majority@n: whether the most frequent parsed answer among n samples is right. Answers vote in one form, "1,000" with
  "1000". Samples without an answer do not vote; among equally frequent answers the one seen first wins. The samples are
  cut into consecutive disjoint groups of n, and a question's value is the mean over the groups: all samples are used at
  every n, at lower variance than one group.
- coverage@n: whether any of n samples is right, by the unbiased estimator 1 - C(s-c, n) / C(s, n) over all s samples, c
  of them right (pass@k of Chen et al. 2021, arXiv 2107.03374, equation 1).
Values are means over questions; standard errors are over questions.

A request's seed comes from the stage's seed, the task and the question's number alone, and sample i of a question
uses seed + i, so that a result depends neither on what shares a batch nor on where a run was resumed.

Out: samples.parquet, a row per sample: task, shots, options (what else tells this entry of decode.tasks from others of
the task), item, question, gold, sample, text, answer (null if there is none), correct, tokens, finish ("stop" or
"length"); curve.parquet, a row per point of the curve: task, shots, options, metric, samples, value, stderr, n.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.evaluations import Decode
from pipeline.engines import vllm as engine
from pipeline.errors import PipelineError
from pipeline.runner import Context, main
from pipeline.tasks import TASKS
from pipeline.tasks.items import Question, Row, in_chunks, read_questions, with_answer
from pipeline.tasks.prompts import check_bos, prompt_ids
from pipeline.tasks.results import ResultRow, mean_row, of_entry
from pipeline.tasks.votes import question_values

if TYPE_CHECKING:
    from vllm import LLM

CHUNK = 64  # questions between two saves
SAMPLES = pa.schema(
    [
        ("task", pa.string()),
        ("shots", pa.int64()),
        ("options", pa.string()),
        ("item", pa.int64()),
        ("question", pa.string()),
        ("gold", pa.string()),
        ("sample", pa.int64()),
        ("text", pa.string()),
        ("answer", pa.string()),
        ("correct", pa.bool_()),
        ("tokens", pa.int64()),
        ("finish", pa.string()),
    ]
)


def request_seed(seed: int, task: str, item: int) -> int:
    """48 bits that stand for a question: far apart for different questions, since samples count up from them."""
    return int.from_bytes(hashlib.sha256(f"{seed} {task} {item}".encode()).digest()[:6], "big")


def sample(llm: "LLM", questions: Sequence[Question], config: Decode) -> list[Row]:
    """`config.samples` answers to each question; one row per sample.

    Raises:
        PipelineError: a prompt that leaves no room for `config.max_tokens` in the model's context.
    """
    from vllm import SamplingParams

    from pipeline.engines.vllm_sampling import without_sorting

    tokenizer, context = llm.get_tokenizer(), llm.model_config.max_model_len
    prompts, params = [], []
    for question in questions:
        ids = prompt_ids(tokenizer, question.prompt, config.add_bos)
        if len(ids) + config.max_tokens > context:
            raise PipelineError(
                f"task '{question.task}', item {question.item}: {len(ids)} tokens of prompt and decode.max_tokens "
                f"{config.max_tokens} exceed the model's context of {context}; lower max_tokens or give fewer shots"
            )
        prompts.append({"prompt_token_ids": ids})
        params.append(
            SamplingParams(
                n=config.samples,
                temperature=config.temperature,
                top_p=config.top_p,
                max_tokens=config.max_tokens,
                stop=list(TASKS[question.task].stops),
                seed=request_seed(config.seed, question.task, question.item),
            )
        )
    engine.check_prompts(
        llm, [p["prompt_token_ids"] for p in prompts], [f"task '{q.task}', item {q.item}" for q in questions]
    )
    llm.reset_prefix_cache()  # a chunk is computed in the same way whether or not others went before it
    with without_sorting(llm):
        outputs = llm.generate(prompts, params, use_tqdm=False)
    rows = []
    for question, output in zip(questions, outputs, strict=True):
        for completion in output.outputs:
            task = TASKS[question.task]
            answer = task.extract(completion.text)
            rows.append(
                {
                    "task": question.task,
                    "item": question.item,
                    "question": question.question,
                    "gold": question.gold,
                    "sample": completion.index,
                    "text": completion.text,
                    "answer": answer,
                    "correct": None not in (answer, question.gold) and task.correct(str(answer), str(question.gold)),
                    "tokens": len(completion.token_ids),
                    "finish": completion.finish_reason,
                }
            )
    return rows


def curve(task: str, rows: list[Row]) -> list[ResultRow]:
    """majority@n and coverage@n of one task's samples for n = 1, 2, 4 ... and the share without an answer."""
    values = question_values(rows)
    most = len(rows) // len(values["unparsed"])
    return [
        mean_row(task, metric, list(of.values())) | {"samples": int(metric.partition("@")[2] or most)}
        for metric, of in values.items()
    ]


def run(ctx: Context) -> dict[str, Any]:
    config = ctx.scale.decode
    assert config is not None
    check_bos(ctx.inputs["checkpoint"], config.add_bos)
    asked, left_out = [], 0
    for entry in config.tasks:
        questions, without = with_answer(read_questions(ctx.items_folder(entry.task), entry, config.seed))
        asked.append(questions)
        left_out += without
    with engine.quick_imports():
        from vllm import LLM
    settings = engine.options(config.dtype, None, config.seed, ctx.execution)
    points, rows = [], []
    with engine.serving(LLM, ctx.inputs["checkpoint"], settings) as llm:
        for i, (entry, questions) in enumerate(zip(config.tasks, asked, strict=True)):
            name = f"{i}-{entry.task}"
            samples = in_chunks(
                ctx.state, name, questions, CHUNK, lambda chunk: sample(llm, chunk, config), ctx.progress
            )
            points += of_entry(entry, curve(entry.task, samples))
            rows += of_entry(entry, samples)
            ctx.say(
                f"{entry.task}, shots {entry.shots}: "
                + ", ".join(f"{p['metric']} {p['value']:.3f}" for p in points[-3:])
            )
    pq.write_table(pa.Table.from_pylist(rows, SAMPLES), ctx.out / "samples.parquet")
    pq.write_table(pa.Table.from_pylist(points), ctx.out / "curve.parquet")
    results = [{key: value for key, value in point.items() if key != "samples"} for point in points]
    return {
        "results": results,
        "sampled_tokens": sum(row["tokens"] for row in rows),
        "unparsed_samples": sum(row["answer"] is None for row in rows),
        "items_without_answer": left_out,
    }


if __name__ == "__main__":
    main("decode", run, __doc__)
