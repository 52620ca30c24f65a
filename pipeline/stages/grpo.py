"""GRPO: post-train a point's converted checkpoint with verl (docs/PAPER.md, post-training).

    python -m pipeline.stages.grpo --scale mini --point d32-E2-k2-52K-A51K

Each step samples `rollouts` answers to `prompts` questions with vLLM, rewards those with the right final answer, and
makes one policy-gradient update per mini-batch; an answer's advantage is its reward less its group's mean, over the
group's standard deviation. A KL term holds the policy near the checkpoint it started from.

In:  the checkpoint (Hugging Face Mixtral), and the task's questions in the corpus or benchdata artifact.
Out: a checkpoint of the same layout, training.parquet (a row per step), validation.parquet (greedy accuracy on the test
questions before training, every `eval_interval` steps, and at the end).
State: verl's checkpoints, every --save-interval steps and at the end, and one log per launch.
"""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.recipes import Grpo
from pipeline.engines.verl import outputs, trainer
from pipeline.errors import PipelineError
from pipeline.models.weights import refuse_nonfinite
from pipeline.runner import Context, main
from pipeline.runtime.curves import Curves
from pipeline.tasks.prompts import prompt_ids, training_prompt
from pipeline.tasks.results import mean_and_stderr

ENDS = 5  # steps averaged at each end of the reward curve
COLUMNS = {  # of training.parquet: verl's names
    "reward": "critic/score/mean",
    "kl": "actor/kl_loss",
    "entropy": "actor/entropy",
    "grad_norm": "actor/grad_norm",
    "response_tokens": "response_length/mean",
    "probs_diff_mean": "training/rollout_probs_diff_mean",
    "probs_diff_max": "training/rollout_probs_diff_max",
}
SECONDS = "perf/time_per_step"


def prompt_rows(items: Path, checkpoint: Path, recipe: Grpo, limit: int | None = None) -> tuple[pa.Table, int]:
    """verl's data rows for the questions of a task, and how many were left out because they are too long.

    Rollouts are sampled from `extra_info.prompt_ids` (engines/verl/plugin/rollouts.py); the message that verl insists
    on is the same prompt as text.

    Args:
        items: Parquet file with columns question and gold.
        checkpoint: Hugging Face folder whose tokenizer is used.
        limit: the first so many questions only.

    Raises:
        PipelineError: no question fits.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    table = pq.read_table(items, columns=["question", "gold"]).slice(0, limit)
    table = table.filter(table["gold"].is_valid())  # questions whose answer cannot be judged are not asked
    prompts = [training_prompt(recipe, question) for question in table["question"].to_pylist()]
    encoded = [prompt_ids(tokenizer, prompt, recipe.add_bos) for prompt in prompts]
    rows = [
        {
            "data_source": recipe.task,
            "prompt": [{"role": "user", "content": prompt}],
            "reward_model": {"style": "rule", "ground_truth": gold},
            "extra_info": {"index": i, "prompt_ids": ids},
        }
        for i, (prompt, gold, ids) in enumerate(zip(prompts, table["gold"].to_pylist(), encoded, strict=True))
        if len(ids) <= recipe.max_prompt
    ]
    if not rows:
        raise PipelineError(f"{items}: no question fits in grpo.max_prompt = {recipe.max_prompt} tokens; raise it")
    return pa.Table.from_pylist(rows), len(prompts) - len(rows)


def check_weights_reach_sampler(steps: dict[int, dict[str, Any]], limit: float) -> float:
    """The largest step mean of |p_vLLM - p_actor| over the sampled tokens.

    Both engines hold the same weights, so that more than rounding means that vLLM did not take the actor's weights.

    Raises:
        PipelineError: above `limit`, or not measured.
    """
    name = COLUMNS["probs_diff_mean"]
    means: dict[int, float] = {step: data[name] for step, data in steps.items() if data.get(name) is not None}
    missing = [step for step in steps if step > 0 and step not in means]
    if missing or not means:
        raise PipelineError(f"verl did not report {name} (steps {missing or 'all'}): the weight transfer is unproved")
    worst = max(means, key=means.__getitem__)
    if means[worst] > limit:
        raise PipelineError(
            f"step {worst}: vLLM's and the actor's probabilities differ by {means[worst]:.4f} on average, above "
            f"grpo.max_probs_diff = {limit}: the actor's weights did not reach vLLM, or dtype rounds too much"
        )
    return means[worst]


def _check_lengths(checkpoint: Path, recipe: Grpo) -> None:
    allowed = json.loads((checkpoint / "config.json").read_text())["max_position_embeddings"]
    if recipe.max_prompt + recipe.max_response > allowed:
        raise PipelineError(
            f"grpo.max_prompt + grpo.max_response = {recipe.max_prompt + recipe.max_response} tokens, but "
            f"{checkpoint / 'config.json'} allows {allowed} (model.sequence_length); lower them"
        )


class Show:
    """Shows verl's metrics by step while it trains, each step once: as progress, and as curves for TensorBoard."""

    def __init__(self, ctx: Context, curves: Curves, accuracy: str) -> None:
        self.ctx, self.curves, self.accuracy = ctx, curves, accuracy
        self.shown = -1

    def __call__(self, steps: dict[int, dict[str, Any]]) -> None:
        for step, data in steps.items():
            if step > self.shown:
                self.curves.write(step, "training", {name: data.get(key) for name, key in COLUMNS.items()})
                self.curves.write(step, "validation", {"accuracy": data.get(self.accuracy)})
                self.shown = step
        if steps:
            assert self.ctx.scale.grpo is not None
            self.ctx.progress(max(steps), self.ctx.scale.grpo.steps, "steps")


def run(ctx: Context) -> dict[str, Any]:
    recipe = ctx.scale.grpo
    assert recipe is not None
    checkpoint, items = ctx.inputs["checkpoint"], ctx.items_folder(recipe.task)
    _check_lengths(checkpoint, recipe)
    refuse_nonfinite(checkpoint, "GRPO cannot start from it; delete the folder to make the checkpoint anew")
    state, limits = ctx.state.resolve(), {"train": None, "validation": recipe.eval_items}
    rows, too_long, without_answer = {}, {}, 0
    for name, file in (("train", "train.parquet"), ("validation", "test.parquet")):
        table, too_long[name] = prompt_rows(items / file, checkpoint, recipe, limits[name])
        pq.write_table(table, state / f"{name}.parquet")
        rows[name] = table.num_rows
        without_answer += pq.read_table(items / file, columns=["gold"]).slice(0, limits[name])["gold"].null_count
    if rows["train"] < recipe.prompts:
        raise PipelineError(
            f"{items / 'train.parquet'}: {rows['train']} questions, fewer than grpo.prompts = {recipe.prompts}"
        )

    done, accuracy = outputs.resume_step(state), f"val-core/{recipe.task}/acc/mean@1"
    if done < recipe.steps:
        launch = len(list(state.glob("metrics-*.log")))
        ctx.say(f"verl from step {done} to {recipe.steps}; log: {state / f'metrics-{launch:03}.log'}")
        settings = trainer.overrides(recipe, ctx.execution, checkpoint.resolve(), state, rows["train"])
        # The step that training continues from has been validated if that was due.
        settings.append(f"trainer.val_before_train={0 not in outputs.read_metrics(state)}")
        with Curves(ctx.events, first=0) as curves:
            show = Show(ctx, curves, accuracy)
            show({step: data for step, data in outputs.read_metrics(state).items() if step <= done})
            trainer.train(settings, state, state / f"metrics-{launch:03}.jsonl", ctx.execution, show)

    steps = outputs.read_metrics(state)
    training: list[dict[str, Any]] = [
        {"step": n, **{k: data.get(v) for k, v in COLUMNS.items()}} for n, data in steps.items() if n > 0
    ]
    if [row["step"] for row in training] != list(range(1, recipe.steps + 1)):
        raise PipelineError(f"{state}: verl's logs lack steps; delete the folder to start this point's GRPO anew")
    worst = check_weights_reach_sampler(steps, recipe.max_probs_diff)
    validation = [
        {"step": n, "accuracy": data[accuracy], "n": rows["validation"]}
        for n, data in steps.items()
        if accuracy in data
    ]
    for name, table_rows in (("training", training), ("validation", validation)):
        pq.write_table(pa.Table.from_pylist(table_rows), ctx.out / f"{name}.parquet")
    trained = state / "checkpoints" / f"global_step_{recipe.steps}" / "actor" / "huggingface"
    outputs.publish_weights(trained, checkpoint, ctx.out)
    refuse_nonfinite(
        ctx.out, "nothing is published: GRPO diverged; lower grpo.lr or raise grpo.kl_coef", lambda path: path.name
    )

    ctx.timing["seconds_per_step"] = fmean(data[SECONDS] for n, data in steps.items() if n > 0)
    ctx.timing["launches"] = len(list(state.glob("metrics-*.log")))
    ends = min(ENDS, recipe.steps)
    # Errors are from the spread between steps: samples of one prompt, and prompts of one step, are alike, so that
    # counting every sample as independent halves them.
    first, first_error = mean_and_stderr([row["reward"] for row in training[:ends]])
    last, last_error = mean_and_stderr([row["reward"] for row in training[-ends:]])
    before, after = validation[0]["accuracy"], validation[-1]["accuracy"]
    ctx.say(
        f"reward {first:.3f} -> {last:.3f}; validation accuracy {before:.3f} -> {after:.3f} (n = {rows['validation']})"
    )
    return {
        "steps": recipe.steps,
        "reward_first": first,
        "reward_first_stderr": first_error,
        "reward_last": last,
        "reward_last_stderr": last_error,
        "reward_steps_averaged": ends,
        "validation_before": before,
        "validation_after": after,
        "n_validation": rows["validation"],
        "n_train": rows["train"],
        "too_long": sum(too_long.values()),
        "items_without_answer": without_answer,
        "rollout_probs_diff": worst,
    }


if __name__ == "__main__":
    main("grpo", run, __doc__)
