"""Pre-train one point: a mixture of experts on megatron-core, from tokenised sources to a checkpoint.

    python -m pipeline.stages.pretrain --scale mini --point d32-E8-k2-107K-A51K

Paper section 3 (architecture, recipe) and appendix (hyper-parameters). Tokens are `steps * global_batch *
sequence_length`, blended from the scale's sources by weight. On several ranks (`--ranks`, `--tp`, `--pp`, `--ep`) the
stage starts torchrun, on this machine or on all `--nodes` of a cluster job; initial weights, data order and the meaning
of every loss stay the same.

Work in progress is saved every `--save-interval` steps and on SIGTERM, and is continued exactly: the same command
after a kill ends with the tensors an undisturbed run ends with.

Steps named in `pretrain.keep` have their weights set aside as they pass, and published with the last ones. A run that
is finished, or past a step, can no longer keep it.

Publishes `checkpoint/` (safetensors, one file per rank, weights only), `kept/step-<step>/` likewise, `metrics.parquet`
(one row per step: step, loss, load_balance, z_loss, grad_norm, lr, tokens, flops) and `validation.parquet` (step,
tokens, loss, loss_stderr: the standard error over the evaluated batches). Losses are nats per token. Meanwhile
TensorBoard has the same as curves (pipeline/runtime/curves.py).
"""

import json
import math
import os
import shutil
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import TypeAdapter

from pipeline.artifacts import failures
from pipeline.artifacts.progress import Progress
from pipeline.artifacts.store import fsync_tree, write_atomic
from pipeline.config.recipes import DTYPES
from pipeline.dag.point import Point
from pipeline.data.results import KeptStep, PretrainMetrics, TokenizeMetrics
from pipeline.errors import PipelineError, Stopped
from pipeline.models.weights import refuse_nonfinite
from pipeline.runner import Context, main
from pipeline.runtime.curves import Curves
from pipeline.runtime.execution import Execution, die_with_parent
from pipeline.runtime.torchrun import STOP, torchrun
from pipeline.tasks.results import mean_and_stderr

WAY_OUT = "training diverged; lower pretrain.lr or raise pretrain.warmup_steps in the grid file"
PROGRESS_S = 10  # seconds between two lines of progress
SPEED = "tokens_per_s.json"  # in the state folder: median over the steps of the launch that ended
LAST_STEPS = 50  # train_loss is the mean of this many


@dataclass(frozen=True)
class Plan:
    """Everything that a training process has to know; torchrun's processes read it as JSON."""

    point: Point
    execution: Execution
    sources: dict[Path, float]  # folder of token files -> share of the blend
    vocab_size: int  # the tokenizer's
    eod_id: int
    state: Path
    out: Path
    events: Path  # folder of TensorBoard's files


PLAN = TypeAdapter(Plan)


def run(ctx: Context) -> dict[str, Any]:
    from pipeline.engines.megatron.model import check_layout

    point, execution = ctx.point, ctx.execution
    check_layout(point, execution)
    tokens = TokenizeMetrics.of(ctx.records[f"tokenize/{next(iter(ctx.scale.data.sources))}"])
    vocab_size, rows = tokens.vocab_size, point.model.vocab_size
    if vocab_size > rows:
        raise PipelineError(f"model.vocab_size {rows} is below the tokenizer's {vocab_size}; raise it in the grid file")
    sources = {ctx.inputs[f"tokenize/{name}"]: share for name, share in ctx.scale.data.sources.items()}
    plan = Plan(point, execution, sources, vocab_size, tokens.eod_id, ctx.state, ctx.out, ctx.events)
    ctx.say(
        f"{point.total_params:,} parameters, {point.active_params:,} active; {point.tokens:,} tokens, "
        f"{point.tokens_per_param:.1f} per parameter; {point.tokens * point.flops_per_token:.3g} FLOPs"
    )
    (ctx.state / STOP).unlink(missing_ok=True)
    if execution.processes == 1:
        train(plan)
    else:
        write_atomic(ctx.state / "plan.json", PLAN.dump_json(plan))
        torchrun("pipeline.stages.pretrain", ctx.state / "plan.json", execution)
    refuse_nonfinite(ctx.out, f"nothing is published: {WAY_OUT}", lambda path: path.relative_to(ctx.out).as_posix())
    if (speed := ctx.state / SPEED).exists():
        ctx.timing["tokens_per_s"] = json.loads(speed.read_text())
    return summary(plan)


def train(plan: Plan) -> None:
    """Train on this process, which may be one rank of several, and write the stage's files."""
    import torch
    import torch.distributed as dist

    from pipeline.engines.megatron import model as megatron
    from pipeline.engines.megatron.data import build_datasets
    from pipeline.engines.megatron.trainer import Trainer
    from pipeline.engines.megatron.weights import save_weights

    point, recipe, execution = plan.point, plan.point.pretrain, plan.execution
    with terminations() as asked_to_stop, megatron.session(execution) as device, ExitStack() as opened:
        first = dist.get_rank() == 0
        dtype = getattr(torch, DTYPES[recipe.dtype])
        model = megatron.build_model(point, execution, device, dtype, drawn=not saved(plan))
        if (total := megatron.count_parameters(model)) != point.total_params:
            raise RuntimeError(f"{point.name}: the model has {total} parameters, the grid says {point.total_params}")
        index = plan.state / "index"
        training, validation = build_datasets(point, plan.sources, plan.vocab_size, plan.eod_id, index)
        trainer = Trainer(model, point)
        start, rows, evaluations = resume(plan, trainer)
        keeping = {step: name for name, step in point.kept.items()}
        if first and start:
            print(f"continuing after step {start}", flush=True)

        step_tokens = recipe.global_batch * point.model.sequence_length
        reported = begun = time.monotonic()
        speeds: list[float] = []
        progress = Progress(plan.state.parent)
        curves = opened.enter_context(Curves(plan.events if first else None, start + 1))
        for step in range(start + 1, recipe.steps + 1):
            tick = time.perf_counter()
            asked = bool(asked_to_stop) or (first and (plan.state / STOP).exists())
            result = trainer.step(training, step - 1, stop=asked)
            speeds.append(step_tokens / (time.perf_counter() - tick))
            if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
                raise PipelineError(
                    f"{point.name}: loss {result.loss}, gradient norm {result.grad_norm} at step {step}: {WAY_OUT}"
                )
            done, measured = {"step": step, "tokens": step * step_tokens}, result.metrics()
            rows.append(done | measured | {"flops": step * step_tokens * point.flops_per_token})
            curves.step(step, "training", measured | {"tokens_per_s": speeds[-1]})
            last = step == recipe.steps
            if step in keeping:
                keep(plan, trainer.weights, keeping[step])
            if step % recipe.eval_interval == 0 or last:
                loss, stderr = mean_and_stderr(trainer.evaluate(validation))
                if not math.isfinite(loss):
                    raise PipelineError(f"{point.name}: validation loss {loss} at step {step}: {WAY_OUT}")
                evaluations.append(done | {"loss": loss, "loss_stderr": math.nan if stderr is None else stderr})
                curves.write(step, "validation", {"loss": loss})
            stop = result.stop and not last
            if step % execution.save_interval == 0 or last or stop:
                if wrong := trainer.nonfinite():  # or it would replace a save that is good
                    raise PipelineError(f"{point.name}: NaN or infinity in '{wrong}' after step {step}: {WAY_OUT}")
                curves.flush()
                save(plan, trainer, step, rows, evaluations)
            if stop:
                raise Stopped(f"{point.name}: stopped at step {step} and saved; the same command continues")
            if first:
                progress(done["tokens"], point.tokens, "tokens")
            if first and (time.monotonic() - reported > PROGRESS_S or last):
                reported = time.monotonic()
                pace = (reported - begun) / (step - start)
                print(
                    f"step {step}/{recipe.steps}  loss {result.loss:.4f}  {step_tokens / pace:,.0f} tokens/s  "
                    f"{pace * (recipe.steps - step):,.0f} s to go",
                    flush=True,
                )
        if first:
            (plan.out / "checkpoint").mkdir()
            publish_kept(plan)
            pd.DataFrame(rows).to_parquet(plan.out / "metrics.parquet", index=False)
            pd.DataFrame(evaluations).to_parquet(plan.out / "validation.parquet", index=False)
            if speeds:  # none if all steps were done before a kill
                write_atomic(plan.state / SPEED, json.dumps(statistics.median(speeds)))
        dist.barrier()
        save_weights(trainer.weights, plan.out / "checkpoint")


@contextmanager
def terminations() -> Iterator[list[int]]:
    """SIGTERMs received meanwhile, which then do not end the process: schedulers give notice with them."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


# ------------------------------------------------------------------------------------------------ work in progress


def saved(plan: Plan) -> list[Path]:
    """Whole saves in the state folder, newest last; one being written has another name."""
    return sorted(plan.state.glob("step-*"))


def save(plan: Plan, trainer: Any, step: int, rows: list[dict], evaluations: list[dict]) -> None:
    """Save all that `resume` needs. A kill at any moment leaves this save or the one before it whole."""
    import torch.distributed as dist

    partial, whole = plan.state / "saving", plan.state / f"step-{step:09d}"
    first = dist.get_rank() == 0
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    dist.barrier()
    trainer.save(partial)
    if first:
        pd.DataFrame(rows).to_parquet(partial / "metrics.parquet", index=False)
        pd.DataFrame(evaluations).to_parquet(partial / "validation.parquet", index=False)
        (partial / "layout.json").write_text(json.dumps(layout(plan.execution)))
        fsync_tree(partial)
        partial.rename(whole)
        for older in saved(plan)[:-1]:
            shutil.rmtree(older)
    dist.barrier()


def resume(plan: Plan, trainer: Any) -> tuple[int, list[dict], list[dict]]:
    """Load the newest save, if there is one: the step it was made after, and the rows until then."""
    if not saved(plan):
        return 0, [], []
    folder = saved(plan)[-1]
    if (saved_layout := json.loads((folder / "layout.json").read_text())) != (current := layout(plan.execution)):
        raise PipelineError(
            f"{folder}: saved with layout {saved_layout}, and Megatron reads optimizer states only under the same one, "
            f"not {current}; finish with the old layout, or delete the folder to start again"
        )
    trainer.load(folder)
    rows, evaluations = (pd.read_parquet(folder / f"{name}.parquet") for name in ("metrics", "validation"))
    return int(folder.name.removeprefix("step-")), rows.to_dict("records"), evaluations.to_dict("records")


def layout(execution: Execution) -> dict[str, int]:
    """The parallel sizes that must not change between a save and its resumption; data parallel ranks may."""
    return {"tp": execution.tp, "pp": execution.pp, "ep": execution.ep}


# ------------------------------------------------------------------------------------- intermediate checkpoints


def keep(plan: Plan, model: Any, name: str) -> None:
    """Set the weights aside in the state folder. Called on all ranks."""
    import torch.distributed as dist

    from pipeline.engines.megatron.weights import save_weights

    partial, whole = plan.state / "keeping", plan.state / "kept" / name
    first = dist.get_rank() == 0
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    dist.barrier()
    save_weights(model, partial)
    if first:
        fsync_tree(partial)
        shutil.rmtree(whole, ignore_errors=True)  # of a launch that was killed before its next save
        whole.parent.mkdir(exist_ok=True)
        partial.rename(whole)
    dist.barrier()


def publish_kept(plan: Plan) -> None:
    """Link what was kept into the output; it stays in the state folder too until the output is published."""
    for name, step in plan.point.kept.items():
        if (plan.state / "kept" / name).exists():
            shutil.copytree(plan.state / "kept" / name, plan.out / "kept" / name, copy_function=os.link)
        else:
            print(f"step {step} was past before pretrain.keep named it: not kept", flush=True)


# --------------------------------------------------------------------------------------------------------- record


def summary(plan: Plan) -> dict[str, Any]:
    """The record's metrics, from the files just written."""
    rows = pd.read_parquet(plan.out / "metrics.parquet")
    validation = pd.read_parquet(plan.out / "validation.parquet")
    point, end = plan.point, rows.iloc[-1]
    last, held_out = rows["loss"].tail(LAST_STEPS), validation.iloc[-1]
    train_loss, train_stderr = mean_and_stderr(last.tolist())
    kept = {name: step for name, step in point.kept.items() if (plan.out / "kept" / name).exists()}
    losses = {
        name: KeptStep(
            step=step,
            train_loss=float(rows["loss"][rows["step"] <= step].tail(LAST_STEPS).mean()),
            validation_loss=next(iter(validation["loss"][validation["step"] == step].tolist()), None),
        )
        for name, step in kept.items()
    }
    return PretrainMetrics(
        train_loss=train_loss,
        train_loss_stderr=train_stderr,
        train_loss_n=len(last),
        validation_loss=float(held_out["loss"]),
        validation_loss_stderr=None if pd.isna(held_out["loss_stderr"]) else float(held_out["loss_stderr"]),
        validation_loss_n=point.pretrain.eval_batches,
        load_balance=float(rows["load_balance"].tail(LAST_STEPS).mean()),
        total_params=point.total_params,
        active_params=point.active_params,
        tokens=int(end["tokens"]),
        tokens_per_param=point.tokens_per_param,
        flops=float(end["flops"]),
        kept=losses,
    ).plain()


def work(plan_file: Path) -> None:
    """One of torchrun's processes."""
    die_with_parent(signal.SIGKILL)
    plan = PLAN.validate_json(plan_file.read_bytes())
    try:
        train(plan)
    except BaseException as error:  # PyTorch's CheckpointException is no Exception
        if not isinstance(error, PipelineError):
            traceback.print_exc()
        print(f"error (rank {os.environ['RANK']}): {failures.explain(error, plan.state) or error}", flush=True)
        sys.exit(1)


if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:
        work(Path(sys.argv[1]))
    else:
        main("pretrain", run, __doc__)
