"""Each patch of megatron-core is needed: without it, training or saving on a CPU fails as its docstring says."""

import multiprocessing
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from pipeline.runtime.execution import Execution, prepare_environment
from tests.helpers.tokens import first_point, toy_dag

CPU = Execution(device="cpu")
prepare_environment(CPU)


def train_and_save(folder: Path, left_out: str, answer: Connection) -> None:
    """Two steps and a save in this process with one patch left out; answers with what went wrong, if anything did."""
    from pipeline.engines.megatron import model as megatron
    from pipeline.engines.megatron import patches
    from pipeline.engines.megatron.trainer import Trainer

    patches.EVERYWHERE.pop(left_out, None)
    patches.CPU_ONLY.pop(left_out, None)
    try:
        import torch

        dag = toy_dag(folder, balance="sequence")  # which is trained by Megatron's own router
        point = dag.points[first_point(dag)]
        row = torch.arange(64)
        dataset = [{"tokens": row, "labels": row, "position_ids": row}] * 32
        with megatron.session(CPU) as device:
            trainer = Trainer(megatron.build_model(point, CPU, device, torch.float32), point)
            trainer.step(dataset, 0)
            trainer.step(dataset, 1)
            (folder / "save").mkdir()
            trainer.save(folder / "save")
        answer.send("started a manager process" if multiprocessing.active_children() else "")
    except Exception:
        answer.send(traceback.format_exc())


@pytest.mark.parametrize(
    ("left_out", "fault"),
    [
        ("none", ""),
        ("missing_te_gemm", "NameError: name 'te_general_gemm' is not defined"),
        ("results_queue", "started a manager process"),
        ("current_device", "Torch not compiled with CUDA enabled"),
        ("synchronize", "Torch not compiled with CUDA enabled"),
        ("device_literals", "Torch not compiled with CUDA enabled"),
        ("tensor_type_names", "Wrapped parameters must be one of torch.cuda.FloatTensor"),
    ],
)
def test_without_a_patch_its_fault_comes_back(left_out: str, fault: str, tmp_path: Path) -> None:
    # Patches stay for the life of a process, so each case has its own, forked from one that only imported.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.engines.megatron.modules"])
    ours, theirs = context.Pipe()
    process = context.Process(target=train_and_save, args=(tmp_path, left_out, theirs))
    process.start()
    said = ours.recv()
    process.join()
    assert (fault in said) if fault else said == "", said
