r"""The published tasks: the paper's eight benchmarks, and MATH for post-training.

Prompts are those of lm-eval's stock tasks (tested against them), but for code in task loss: the authors' sets give
HumanEval+'s own prompt, and of MBPP+ the problem's one sentence, both without examples. MATH's is the authors' GRPO
prompt, the bare problem and two line feeds.

The stops of GSM8K are those of the authors' zero-shot script, which cut off a model that asks itself the next
question.
"""

import re

from pipeline.tasks.answers import NONE, equivalent, final_expression, final_number, final_number_or_none
from pipeline.tasks.numbers import number
from pipeline.tasks.task import HubTask, Row

QUESTION = "Question: {question}\nAnswer:"
NEXT_QUESTION = ("Q:", "Question:")


def gsm8k(row: Row) -> Row:
    """`answer` ends in `#### 18`."""
    gold = final_number(row["answer"])
    return {"question": row["question"], "answer": row["answer"], "gold": gold}


def gsm_plus(row: Row) -> Row:
    """`answer` is a number as text, or "None" where a question was changed so that it cannot be answered."""
    answer = str(row["answer"]).strip()  # null, too, becomes "None"
    gold = NONE if answer.lower() == "none" else number(answer)
    return {"question": row["question"], "answer": row["solution"], "gold": gold}


def triviaqa(row: Row) -> Row:
    """Worked examples show the first alias, as lm-eval does; the answer scored by task loss is the canonical one."""
    answer = row["answer"]
    aliases = list(answer["aliases"])
    value = answer["value"]
    return {"question": row["question"], "answer": value, "gold": value, "shot": aliases[0] if aliases else value}


def clean(text: str) -> str:
    """Text of HellaSwag without the marks of its WikiHow half, as lm-eval cleans it."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def hellaswag(row: Row) -> Row:
    """The context, and the true one of four endings."""
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    ending = clean(row["endings"][int(row["label"])]) if row["label"] != "" else ""  # the test split has no labels
    return {"question": clean(context), "answer": ending, "gold": ending}


def humaneval(row: Row) -> Row:
    """The prompt is the head of a function, the answer its body."""
    gold = f"{row['test']}\ncheck({row['entry_point']})"
    return {"question": row["prompt"], "answer": row["canonical_solution"], "gold": gold}


def mbpp(row: Row) -> Row:
    """One sentence, and a program that starts on a new line."""
    code = row["code"].replace("\r\n", "\n").strip("\n")
    sentence = row["prompt"] if "prompt" in row else row["text"]
    return {"question": sentence, "answer": f"\n{code}\n", "gold": "\n".join(row["test_list"])}


def math(row: Row) -> Row:
    r"""`solution` holds the final answer in \boxed{}."""
    return {"question": row["problem"], "answer": row["solution"], "gold": final_expression(row["solution"])}


HUB: dict[str, HubTask] = {
    task.name: task
    for task in (
        HubTask(
            name="gsm8k",
            kind="reasoning",
            items="gsm8k",
            template=QUESTION,
            stops=NEXT_QUESTION,
            data="gsm8k",
            stock="gsm8k",
            train="main/train-*.parquet",
            test="main/test-*.parquet",
            item=gsm8k,
            parse=final_number,
        ),
        HubTask(
            name="gsm_plus",
            kind="reasoning",
            items="gsm_plus",
            template=QUESTION,
            stops=NEXT_QUESTION,
            data="gsm_plus",
            stock="gsm_plus",
            train="data/test-*.parquet",  # lm-eval's task takes its examples from the test questions
            test="data/test-*.parquet",
            item=gsm_plus,
            spare=True,
            parse=final_number_or_none,
        ),
        HubTask(
            name="triviaqa",
            kind="memorisation",
            items="triviaqa",
            template="Question: {question}?\nAnswer:",  # lm-eval's; the questions end in one too
            data="triviaqa",
            stock="triviaqa",
            train="rc.nocontext/train-*.parquet",
            test="rc.nocontext/validation-*.parquet",
            item=triviaqa,
            spare=True,
        ),
        HubTask(
            name="hellaswag",
            kind="memorisation",
            items="hellaswag",
            template="{question}",
            data="hellaswag",
            stock="hellaswag",
            train="data/train-*.parquet",
            test="data/validation-*.parquet",
            item=hellaswag,
            spare=True,
        ),
        HubTask(
            name="humaneval",
            kind="reasoning",
            items="humaneval",
            template="{question}",
            separator="",
            data="humaneval",
            stock="humaneval",
            train=None,
            test="openai_humaneval/test-*.parquet",
            item=humaneval,
            code=True,
        ),
        HubTask(
            name="humaneval_plus",
            kind="reasoning",
            items="humaneval_plus",
            template="{question}",
            separator="",
            data="humaneval_plus",
            stock="humaneval",
            train=None,
            test="data/test-*.parquet",
            item=humaneval,
            code=True,
        ),
        HubTask(
            name="mbpp",
            kind="reasoning",
            items="mbpp",
            template="{question}",
            separator="",
            data="mbpp",
            stock="mbpp",
            train="full/train-*.parquet",
            test="full/test-*.parquet",
            item=mbpp,
            code=True,
        ),
        HubTask(
            name="mbpp_plus",
            kind="reasoning",
            items="mbpp_plus",
            template="{question}",
            separator="",
            data="mbpp_plus",
            stock="mbpp",
            train=None,
            test="data/test-*.parquet",
            item=mbpp,
            code=True,
        ),
        HubTask(
            name="math",
            kind="reasoning",
            items="math",
            template="{question}\n\n",
            separator="",
            data="math",
            stock=None,
            train="data/train-*.parquet",
            test="data/test-*.parquet",
            item=math,
            parse=final_expression,
            same=equivalent,
        ),
    )
}
