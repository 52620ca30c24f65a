"""Benchmark: greedy accuracy by lm-evaluation-harness on its vLLM backend.

    python -m pipeline.stages.benchmark --scale mini --point d32-E8-k2-107K-A51K --variant base

The paper's downstream accuracy (Figures 4 to 6): TriviaQA and HellaSwag for memorisation, GSM8K and GSM-Plus for
reasoning. The project's own tasks are lm-eval tasks too (pipeline/tasks/lm_eval): recall in TriviaQA's form,
recall_choice in HellaSwag's, sums in GSM8K's. Any other name is one of lm-eval's stock tasks, unedited; the paper's
eight find their data in a mirror of the hub (pipeline/tasks/offline_hub/mirror.py) made of benchdata artifacts.

Prompts are tokenised as in the other stages (pipeline/tasks/prompts.py), in place of lm-eval's own way: its
add_bos_token leaves the choice to the tokenizer, which may have been saved with another one. A choice is scored on the
joint text's tokens after as many as the prompt alone has. lm-eval cuts prompts that do not fit from the left: the
record counts these requests in `truncated`.

Out: results.parquet, a row per metric: task, shots, options (what else tells this entry of benchmark.tasks from others
of the task), metric (lm-eval's name with its filter), value, stderr, n; samples.parquet, a row per item and filter:
task, shots, options, item, filter, prompt, response, filtered, target (JSON where they are not text: for multiple
choice [log-likelihood, is greedy] of each choice), and a column for each metric.
"""

import difflib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts.store import write_atomic
from pipeline.config.evaluations import EvalTask
from pipeline.engines import vllm as engine
from pipeline.errors import PipelineError
from pipeline.runner import Context, main
from pipeline.tasks import OWN, TASKS, stock
from pipeline.tasks.items import Row, in_chunks
from pipeline.tasks.offline_hub import mirror
from pipeline.tasks.prompts import check_bos, prompt_ids
from pipeline.tasks.results import ResultRow, of_entry

if TYPE_CHECKING:
    from lm_eval.models.vllm_causallms import VLLM
    from lm_eval.tasks import TaskManager

CHUNK = 1024  # requests between two saves
PROBED = 64  # prompts of them whose log-probabilities are looked at where a task asks for none


class Evaluated(TypedDict):
    """What lm-eval gives for one entry of benchmark.tasks, kept as JSON until the stage ends.

    Attributes:
        results: rows of results.parquet, which the record holds as well.
        samples: rows of samples.parquet.
        truncated: requests whose prompts were cut from the left.
    """

    results: list[ResultRow]
    samples: list[Row]
    truncated: int


def load(manager: "TaskManager", ctx: Context, asked: EvalTask) -> list[Any]:
    """lm-eval's task objects for one entry of benchmark.tasks (a stock group has several), with their data read.

    Raises:
        PipelineError: the task is unknown to lm-eval, or the data set of a stock task is not on this machine.
    """
    if asked.task not in manager.all_tasks:
        near = ", ".join(difflib.get_close_matches(asked.task, manager.all_tasks, n=3))
        raise PipelineError(f"benchmark.tasks: lm-eval has no task '{asked.task}'; near it: {near or 'nothing'}")
    changes: dict[str, Any] = {"task": asked.task, "num_fewshot": asked.shots}
    if asked.task in OWN:
        folder = ctx.items_folder(asked.task).resolve()
        files = {split: str(folder / f"{split}.parquet") for split in ("train", "test")}
        changes["dataset_kwargs"] = {"data_files": files}
    try:
        # lm-eval merges changes into tasks that are listed in a group, and only there.
        with mirror.working_in(ctx.state / "mirror") if asked.task in TASKS else nullcontext():
            return list(manager.load([{"group": "run", "task": [changes]}])["tasks"].values())
    except (ConnectionError, FileNotFoundError) as error:  # what `datasets` raises offline for data it does not have
        raise PipelineError(
            f"benchmark.tasks: the data of '{asked.task}' is not on this machine: {error}; "
            f"run the command once with HF_HUB_OFFLINE=0 to download it"
        ) from None


def refuse_same_rows(asked: list[EvalTask], loaded: list[list[Any]]) -> None:
    """Refuse entries whose rows could not be told apart: a stock group beside one of its own tasks.

    Args:
        loaded: lm-eval's task objects of each entry.
    """
    seen: dict[tuple[str, int, str], str] = {}
    for entry, task_objects in zip(asked, loaded, strict=True):
        for name in (task.task_name for task in task_objects):
            other = seen.setdefault((name, entry.shots, entry.options), entry.task)
            if other != entry.task:
                raise PipelineError(
                    f"benchmark.tasks: '{other}' and '{entry.task}' both ask '{name}' in the same way; leave one out"
                )


def use_our_prompts(lm: "VLLM", add_bos: bool | None) -> None:
    """Have lm-eval send the engine the prompts that the other stages would send it."""

    def encode(text: str | Sequence[str], add_special_tokens: bool | None = None, **_: Any) -> list[Any]:
        if not isinstance(text, str):
            return [encode(part, add_special_tokens) for part in text]
        return prompt_ids(lm.tokenizer, text, add_bos if add_special_tokens is None else add_special_tokens)

    vars(lm)["tok_encode"] = encode  # in front of the class's own


def unwrapped(value: Any) -> Any:
    """Without lists of one element: lm-eval nests every response twice."""
    if isinstance(value, list | tuple):
        return unwrapped(value[0]) if len(value) == 1 else [unwrapped(item) for item in value]
    return value


def as_text(value: Any) -> str:
    """Text as it is, anything else as JSON."""
    value = unwrapped(value)
    return value if isinstance(value, str) else json.dumps(value)


def sample_rows(task: str, samples: list[Row]) -> list[Row]:
    """lm-eval's logged samples as rows of samples.parquet."""
    return [
        {
            "task": task,
            "item": sample["doc_id"],
            "filter": sample["filter"],
            "prompt": sample["arguments"][0][0],
            "response": as_text(sample["resps"]),
            "filtered": as_text(sample["filtered_resps"]),
            "target": as_text(sample["target"]),
            **{metric: float(sample[metric]) for metric in sample["metrics"]},
        }
        for sample in samples
    ]


def result_rows(results: dict[str, Row]) -> list[ResultRow]:
    """lm-eval's results as rows. A metric is named with its filter, "exact_match,strict-match", but for "none"."""
    rows: list[ResultRow] = []
    for task, entry in results.items():
        for key, value in entry.items():
            metric, comma, name = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            stderr = entry.get(f"{metric}_stderr,{name}")
            rows.append(
                {
                    "task": task,
                    "metric": metric if name == "none" else key,
                    "value": float(value),
                    "stderr": None if stderr in (None, "N/A") else float(stderr),
                    "n": entry["sample_len"],
                }
            )
    return rows


def truncated(lm: "VLLM", samples: list[Row]) -> int:
    """How many requests were too long for the context, so that lm-eval cut their prompts from the left."""
    requests = {(s["doc_id"], i): args for s in samples for i, args in enumerate(s["arguments"])}
    count = 0
    for text, rest in requests.values():
        if isinstance(rest, str):
            count += len(lm.tok_encode(text + rest)) > lm.max_length - 1
        else:
            count += len(lm.tok_encode(text)) + rest.get("max_gen_toks", lm.max_gen_toks) > lm.max_length
    return count


@contextmanager
def remembered(lm: "VLLM", ctx: Context, name: str) -> Iterator[None]:
    """Have lm-eval's requests answered a chunk at a time, and each chunk's answers kept through a kill.

    lm-eval's own request cache is a database of pickles whose key does not name the model.
    """

    def chunked(method: str) -> Callable[..., list[Any]]:
        answer = getattr(lm, method)

        def ask(requests: Sequence[Any]) -> list[Any]:
            names = [f"task '{request.task_name}', item {request.doc_id}" for request in requests]
            if method == "generate_until":  # gives no log-probabilities: those of some prompts are asked for
                prompts = [lm.tok_encode(request.args[0])[1 - lm.max_length :] for request in requests[:PROBED]]
                engine.check_prompts(lm.model, prompts, names[:PROBED])
            lm.model.reset_prefix_cache()  # a chunk is computed in the same way whether or not others went before it
            answers = answer(list(requests), disable_tqdm=True)
            if method != "generate_until":  # (log-likelihood, whether greedy), or the log-likelihood of a rolling text
                for name, scored in zip(names, answers, strict=True):
                    engine.check_finite(name, [scored[0] if isinstance(scored, tuple) else scored])
            return answers

        def call(requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
            answers = in_chunks(ctx.state, f"{name}-{method}", requests, CHUNK, ask, ctx.progress)
            return [tuple(scored) if isinstance(scored, list) else scored for scored in answers]  # JSON has no tuples

        return call

    methods = ("generate_until", "loglikelihood", "loglikelihood_rolling")
    vars(lm).update({method: chunked(method) for method in methods})  # in front of the class's own
    try:
        yield
    finally:
        for method in methods:
            del vars(lm)[method]


def evaluate(lm: "VLLM", manager: "TaskManager", task_objects: list[Any], asked: EvalTask, seed: int) -> Evaluated:
    """Results, samples and the number of truncated requests of one entry of benchmark.tasks."""
    from lm_eval import simple_evaluate

    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    output = simple_evaluate(
        lm,
        tasks=task_objects,
        task_manager=manager,
        limit=asked.limit,
        log_samples=True,
        confirm_run_unsafe_code=True,  # in the sandbox: pipeline/tasks/offline_hub/mirror.py
        **dict.fromkeys(seeds, seed),
    )
    samples = [row for task, logged in output["samples"].items() for row in sample_rows(task, logged)]
    return {
        "results": of_entry(asked, result_rows(output["results"])),
        "samples": of_entry(asked, samples),
        "truncated": sum(truncated(lm, logged) for logged in output["samples"].values()),
    }


def run(ctx: Context) -> dict[str, Any]:
    config = ctx.scale.benchmark
    assert config is not None
    check_bos(ctx.inputs["checkpoint"], config.add_bos)
    with engine.quick_imports():
        from lm_eval.models.vllm_causallms import VLLM
    manager = stock.task_manager(asked.task for asked in config.tasks)
    repos = {name: data.repo for name, data in ctx.dag.benchmarks.items()}
    mirror.lay_out(ctx.state / "mirror", repos, ctx.inputs, [asked.task for asked in config.tasks])
    loaded = [load(manager, ctx, asked) for asked in config.tasks]
    refuse_same_rows(config.tasks, loaded)
    settings = engine.options(config.dtype, config.max_length, config.seed, ctx.execution) | {"batch_size": "auto"}
    done: list[Evaluated] = []
    with engine.serving(VLLM, ctx.inputs["checkpoint"], settings) as lm:
        use_our_prompts(lm, config.add_bos)
        for i, (asked, task_objects) in enumerate(zip(config.tasks, loaded, strict=True)):
            path = ctx.state / f"{i}-{asked.task}.json"  # a finished task is not asked again after a kill
            if not path.exists():
                with remembered(lm, ctx, f"{i}-{asked.task}"):
                    answers = evaluate(lm, manager, task_objects, asked, config.seed)
                write_atomic(path, json.dumps(answers))
            done.append(json.loads(path.read_text()))
            ctx.say("; ".join(f"{row['task']} {row['metric']} {row['value']:.4f}" for row in done[-1]["results"]))
            if cut := done[-1]["truncated"]:
                ctx.say(f"{asked.task}, shots {asked.shots}: {cut} prompts cut to fit max_length {config.max_length}")
    results = [row for part in done for row in part["results"]]
    samples = [row for part in done for row in part["samples"]]
    text = ("filter", "prompt", "response", "filtered", "target")
    metrics = sorted({key for row in samples for key in row} - {"task", "shots", "options", "item", *text})
    columns = [("task", pa.string()), ("shots", pa.int64()), ("options", pa.string()), ("item", pa.int64())]
    columns += [(name, pa.string()) for name in text]
    schema = pa.schema(columns + [(name, pa.float64()) for name in metrics])
    pq.write_table(pa.Table.from_pylist(samples, schema), ctx.out / "samples.parquet")
    pq.write_table(pa.Table.from_pylist(results), ctx.out / "results.parquet")
    return {"results": results, "truncated": sum(part["truncated"] for part in done)}


if __name__ == "__main__":
    main("benchmark", run, __doc__)
