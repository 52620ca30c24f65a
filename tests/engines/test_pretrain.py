"""Pre-training on the real megatron-core: layouts, resumption, schedules, and what is said when something is wrong."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.artifacts.record import RECORD, Record
from pipeline.dag.dag import Dag
from pipeline.engines.megatron.weights import read_tensors
from pipeline.errors import PipelineError
from pipeline.runner import execute
from pipeline.runtime.execution import Execution, prepare_environment
from tests.helpers.curves import read_curves
from tests.helpers.tokens import first_point, pretrain_job, toy_dag, upstream, write_tokens

CPU = Execution(device="cpu", save_interval=5)
prepare_environment(CPU)
EXACT = ["step", "tokens", "loss", "load_balance", "z_loss", "grad_norm", "lr", "flops"]  # all but the time


def make(folder: Path, **changes: Any) -> tuple[Dag, Path]:
    """A toy scale below `folder` with its upstream artifacts: the scale, and the results folder."""
    dag = toy_dag(folder / "config", **changes)
    upstream(dag, folder / "results")
    return dag, folder / "results"


def pretrain(dag: Dag, results: Path, execution: Execution = CPU) -> Record:
    from pipeline.stages.pretrain import run

    return execute(dag, pretrain_job(dag), run, results, execution)


def read(dag: Dag, results: Path, name: str = "metrics") -> pd.DataFrame:
    return pd.read_parquet(results / pretrain_job(dag).folder / f"{name}.parquet")


def assert_curves_agree(dag: Dag, results: Path) -> None:
    """Each point that TensorBoard shows is that step's of the tables, no step is there twice, and the last one is."""
    curves, rows = read_curves(results.parent / pretrain_job(dag).log.with_suffix("")), read(dag, results)
    named = ["loss", "load_balance", "z_loss", "grad_norm", "lr"]
    assert set(curves) == {*(f"training/{name}" for name in [*named, "tokens_per_s"]), "validation/loss"}
    for name in named:
        steps, values = zip(*curves[f"training/{name}"], strict=True)
        assert list(steps) == sorted(set(steps)) and steps[-1] == rows["step"].iloc[-1]
        assert values == pytest.approx(rows.set_index("step")[name][list(steps)].tolist(), rel=1e-6)
    validation = read(dag, results, "validation")[["step", "loss"]]
    assert curves["validation/loss"] == [
        (step, pytest.approx(loss)) for step, loss in validation.itertuples(index=False)
    ]


def assert_same_result(dag: Dag, results: Path, other: Path) -> None:
    """Every tensor of the two checkpoints and every number of the two tables is the same."""
    import torch

    one, two = (read_tensors(r / pretrain_job(dag).folder / "checkpoint") for r in (results, other))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    pd.testing.assert_frame_equal(read(dag, results)[EXACT], read(dag, other)[EXACT], check_exact=True)
    pd.testing.assert_frame_equal(read(dag, results, "validation"), read(dag, other, "validation"), check_exact=True)


# ------------------------------------------------------------------------------------------------- undisturbed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dag, Path, Record]:
    """A run of 60 steps without interruptions."""
    dag, results = make(tmp_path_factory.mktemp("undisturbed"), steps=60, micro_batch=8, eval_batches=2)
    return dag, results, pretrain(dag, results)


def test_a_model_learns_and_its_record_agrees_with_its_tables(undisturbed: tuple[Dag, Path, Record]) -> None:
    dag, results, record = undisturbed
    point, rows = dag.points[first_point(dag)], read(dag, results)
    assert list(rows["step"]) == list(range(1, 61))
    assert rows["loss"].iloc[-1] < rows["loss"].iloc[0] - 1
    assert record.metrics["train_loss"] == pytest.approx(rows["loss"].tail(50).mean())
    assert record.metrics["tokens"] == point.tokens == rows["tokens"].iloc[-1]
    assert record.metrics["flops"] == pytest.approx(point.tokens * point.flops_per_token)
    validation = read(dag, results, "validation")
    assert list(validation["step"]) == [10, 20, 30, 40, 50, 60]
    assert record.metrics["validation_loss"] == validation["loss"].iloc[-1]
    assert abs(record.metrics["validation_loss"] - rows["loss"].iloc[-1]) < 0.5
    assert record.metrics["train_loss_stderr"] == pytest.approx(rows["loss"].tail(50).sem())
    assert record.metrics["validation_loss_stderr"] == validation["loss_stderr"].iloc[-1]
    assert 0 < validation["loss_stderr"].iloc[-1] < 0.2 and record.metrics["validation_loss_n"] == 2
    assert_curves_agree(dag, results)


def test_the_standard_error_is_over_batches_and_unknown_of_a_single_one() -> None:
    from pipeline.tasks.results import mean_and_stderr

    assert mean_and_stderr([1.0, 2.0, 3.0]) == (2.0, pytest.approx(3**-0.5))
    assert mean_and_stderr([2.5]) == (2.5, None)


def test_the_published_checkpoint_holds_the_weights_and_no_optimizer(undisturbed: tuple[Dag, Path, Record]) -> None:
    dag, results, _ = undisturbed
    tensors = read_tensors(results / pretrain_job(dag).folder / "checkpoint")
    assert sum(t.numel() for t in tensors.values()) == dag.points[first_point(dag)].total_params


# -------------------------------------------------------------------------------------------------- resumption


def wait_for_save(state: Path, process: subprocess.Popen[bytes] | None = None) -> None:
    while not list(state.glob("work-*/step-*")):
        assert process is None or process.poll() is None, "the stage ended before it saved"
        time.sleep(0.005)


def test_training_resumed_after_a_kill_equals_undisturbed_training(
    undisturbed: tuple[Dag, Path, Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dag, results = make(tmp_path, steps=60, micro_batch=8, eval_batches=2)
    job = pretrain_job(dag)
    command = [sys.executable, "-m", "pipeline.stages.pretrain", "--config", str(tmp_path / "config/grid.yaml")]
    command += ["--results", str(results), "--scale", dag.name, "--point", str(job.point), "--device", "cpu"]
    process = subprocess.Popen([*command, "--save-interval", "5"])
    state = results / ".state" / job.folder
    wait_for_save(state, process)
    process.kill()
    process.wait()
    assert not (results / job.record).exists()
    (work,) = state.glob("work-*")
    (work / "saving").mkdir(exist_ok=True)  # as a kill in the middle of a save leaves it
    (work / "saving" / "common.pt").write_bytes(b"torn")
    pretrain(dag, results)
    assert "continuing after step" in capsys.readouterr().out
    assert_curves_agree(dag, results)
    assert_same_result(dag, results, undisturbed[1])


def test_a_terminated_run_saves_its_last_step_and_continues_from_it(
    undisturbed: tuple[Dag, Path, Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dag, results = make(tmp_path, steps=60, micro_batch=8, eval_batches=2)

    def terminate() -> None:
        wait_for_save(results / ".state" / pretrain_job(dag).folder)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    with pytest.raises(PipelineError, match=r"stopped at step [0-9]+ and saved"):
        pretrain(dag, results)
    pretrain(dag, results)
    assert "continuing after step" in capsys.readouterr().out
    assert_same_result(dag, results, undisturbed[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "then", "tolerance"),
    [({"ranks": 2, "ep": 2}, {"ranks": 2, "ep": 2}, 0), ({"ranks": 1}, {"ranks": 2}, 1e-5)],
    ids=["expert parallel", "on more ranks"],
)
def test_the_optimizers_shares_are_continued(
    layout: dict[str, int], then: dict[str, int], tolerance: float, tmp_path: Path
) -> None:
    """Data parallel ranks share the optimizer's state; it is continued exactly, also by another number of them."""
    options = [f"--{name}={value}" for name, value in layout.items()]
    tables = []
    for disturbed in (False, True):
        folder = tmp_path / str(disturbed)
        dag, results = make(folder, hidden=64, micro_batch=4, steps=60, dtype="bf16" if not tolerance else "fp32")
        job = pretrain_job(dag)
        if disturbed:
            command = [sys.executable, "-m", "pipeline.stages.pretrain", "--config", f"{folder}/config/grid.yaml"]
            command += ["--results", str(results), "--scale", dag.name, "--point", str(job.point), "--device", "cpu"]
            process = subprocess.Popen([*command, "--save-interval", "5", *options])
            wait_for_save(results / ".state" / job.folder, process)
            process.terminate()
            assert process.wait() == 1
        pretrain(dag, results, dataclasses.replace(CPU, **then if disturbed else layout))
        tables.append(read(dag, results))
    for column in ("loss", "grad_norm"):
        assert (tables[0][column] - tables[1][column]).abs().max() <= tolerance


def test_a_save_is_refused_under_another_layout(tmp_path: Path) -> None:
    from pipeline.stages.pretrain import PLAN, Plan, resume

    dag = toy_dag(tmp_path / "config")
    (tmp_path / "step-000000005").mkdir()
    (tmp_path / "step-000000005" / "layout.json").write_text('{"tp": 1, "pp": 1, "ep": 2}')
    plan = Plan(dag.points[first_point(dag)], CPU, {tmp_path: 1.0}, 64, 0, tmp_path, tmp_path, tmp_path)
    assert PLAN.validate_json(PLAN.dump_json(plan)) == plan  # how it travels to torchrun's processes
    with pytest.raises(PipelineError, match="step-000000005: saved with layout"):
        resume(plan, None)


# ----------------------------------------------------------------------------------------------------- layouts


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dag, Path]:
    dag, results = make(tmp_path_factory.mktemp("one"), hidden=64, micro_batch=4)
    pretrain(dag, results)
    return dag, results


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param({"ep": 1}, id="data parallel"),
        pytest.param({"ep": 2}, id="expert parallel"),
        pytest.param({"pp": 2}, id="pipeline parallel", marks=pytest.mark.slow),
        pytest.param({"tp": 2}, id="tensor parallel", marks=pytest.mark.slow),
        pytest.param({"tp": 2, "ep": 2}, id="tensor and expert parallel", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_train_as_one_process_does(
    layout: dict[str, int], one_process: tuple[Dag, Path], tmp_path: Path
) -> None:
    dag, results = make(tmp_path, hidden=64, micro_batch=4)
    record = pretrain(dag, results, dataclasses.replace(CPU, ranks=2, **layout))
    assert record.execution["ranks"] == 2
    alone, together = read(*one_process), read(dag, results)
    for column in ("loss", "load_balance", "z_loss", "grad_norm", "lr"):
        assert (alone[column] - together[column]).abs().max() < 1e-5, column
    one, two = (read_tensors(r / pretrain_job(dag).folder / "checkpoint") for r in (one_process[1], results))
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5


@pytest.mark.parametrize(
    ("micro_batch", "layout"),
    [
        pytest.param(4, {}, id="smaller micro-batch"),
        pytest.param(4, {"ranks": 2, "ep": 2}, id="expert parallel"),
        pytest.param(2, {"ranks": 2, "tp": 2}, id="tensor parallel", marks=pytest.mark.slow),
    ],
)
def test_balance_by_sequence_does_not_depend_on_the_micro_batch(
    micro_batch: int, layout: dict[str, int], tmp_path: Path
) -> None:
    """The paper's balance by micro-batch does: 1e-3 of the loss after 20 steps where this stays below 1e-5."""
    runs = {}
    for balance in ("sequence", "micro_batch"):
        for size in (16, micro_batch):
            folder = tmp_path / f"{balance}-{size}"
            dag, results = make(folder, hidden=64, micro_batch=size, balance=balance, aux_loss=0.1)
            pretrain(dag, results, dataclasses.replace(CPU, **layout) if size < 16 else CPU)
            runs[balance, size] = read(dag, results)
    for column in ("loss", "load_balance", "grad_norm"):
        gaps = {
            b: (runs[b, 16][column] - runs[b, micro_batch][column]).abs().max() for b in ("sequence", "micro_batch")
        }
        assert gaps["sequence"] < 1e-5 < 20 * 1e-5 < gaps["micro_batch"], column
    assert (runs["sequence", 16]["load_balance"] >= runs["micro_batch", 16]["load_balance"]).all()


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({"ranks": 3, "tp": 2}, "ranks 3 is not a multiple of tp"),
        ({"ranks": 2, "tp": 2}, "attention heads. 1 is not a multiple of tp = 2"),
        ({"ranks": 3, "pp": 3}, "model.layers 2 is not a multiple of pp = 3"),
        ({"ranks": 3, "ep": 3}, "experts 4 is not a multiple of ep = 3"),
        ({"ranks": 2, "ep": 4}, "ranks / pp = 2 is not a multiple of ep = 4"),
        ({"ranks": 2}, "global_batch 16 does not split into micro-batches of 16 for 2 data parallel ranks"),
    ],
)
def test_a_layout_the_point_cannot_be_cut_into_is_refused(layout: dict[str, int], said: str, tmp_path: Path) -> None:
    from pipeline.engines.megatron.model import check_layout

    dag = toy_dag(tmp_path)
    with pytest.raises(PipelineError, match=said):
        check_layout(dag.points[first_point(dag)], dataclasses.replace(CPU, **layout))


# ------------------------------------------------------------------------------------------ recipe and failures


def test_the_stable_schedule_warms_up_holds_and_decays(tmp_path: Path) -> None:
    recipe = {"lr": 0.01, "min_lr": 0.001, "warmup_steps": 4, "schedule": "wsd", "decay_steps": 8}
    dag, results = make(tmp_path, **recipe)
    pretrain(dag, results)
    done = range(20)  # a step's rate is that after the steps before it
    expected = [0.01 * s / 4 if s <= 4 else 0.01 if s <= 12 else 0.001 + 0.009 * (1 - (s - 12) / 8) for s in done]
    assert list(read(dag, results)["lr"]) == pytest.approx(expected)


def test_a_diverging_run_is_an_error_that_names_the_step(tmp_path: Path) -> None:
    dag, results = make(tmp_path, lr=1e30)
    with pytest.raises(PipelineError, match=r"at step \d+: training diverged"):
        pretrain(dag, results)
    assert not (results / pretrain_job(dag).folder / RECORD).exists()


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    dag, results = make(tmp_path, model={"vocab_size": 32})
    with pytest.raises(PipelineError, match=r"model\.vocab_size 32 is below the tokenizer's 64"):
        pretrain(dag, results)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize(
    ("file", "harm", "said"),
    [
        ("train.bin", truncate, r"train.bin: \d+ bytes where train.idx describes \d+"),
        ("train.idx", lambda p: p.write_bytes(b"not an index"), "train.idx: not a whole Megatron index"),
        ("train.idx", lambda p: p.write_bytes(p.read_bytes()[:60]), "train.idx: not a whole Megatron index"),
        ("train.bin", Path.unlink, "train.bin: missing"),
    ],
)
def test_a_damaged_token_file_is_named(file: str, harm: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    from pipeline.engines.megatron.data import check_tokens

    write_tokens(tmp_path / "train", 20, seed=0)
    check_tokens(tmp_path / "train", 64)
    harm(tmp_path / file)
    with pytest.raises(PipelineError, match=said):
        check_tokens(tmp_path / "train", 64)


def test_too_little_text_for_one_sequence_is_an_error(tmp_path: Path) -> None:
    from pipeline.engines.megatron.data import check_tokens

    tokens = write_tokens(tmp_path / "validation", 2, seed=0)
    check_tokens(tmp_path / "validation", tokens - 1)
    with pytest.raises(PipelineError, match=f"validation.bin: {tokens} tokens do not fill one sequence of {tokens}"):
        check_tokens(tmp_path / "validation", tokens)
