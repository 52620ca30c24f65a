"""Several ranks of one stage through PyTorch's torchrun, on this machine or on all nodes of a cluster job.

With several nodes, one torchrun is started on each by the scheduler's own launcher: `srun` in a Slurm job, `pbsdsh` in
a PBS job. They meet at this process's node, which is one of them.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

from pipeline.artifacts.store import write_atomic
from pipeline.errors import PipelineError, Stopped
from pipeline.runtime.execution import Execution, die_with_parent
from pipeline.runtime.scheduler import allocation

STOP = "stop"  # file in the state folder: ranks that see it save and end
FAILED = "failed"  # file in the state folder: written by a node whose ranks failed
# What `pbsdsh`, which starts programs with the node's own environment, must be told of ours.
PASSED_ON = (
    "PATH", "LD_LIBRARY_PATH", "HOME", "PYTHON", "VIRTUAL_ENV", "OMP_", "TORCH", "NCCL_", "GLOO_", "CUDA_DEVICE_MAX",
    "HF_HUB_OFFLINE", "TOKENIZERS_",
)  # fmt: skip
# Of Slurm's variables, those that say which job this is, and not what shape its step has.
KEPT = ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CONF", "SLURM_CLUSTER_NAME")


def torchrun(module: str, argument: Path, execution: Execution) -> None:
    """Run `python -m module argument` on all ranks and wait. At SIGTERM the ranks are asked to save and stop.

    Asked by a file next to `argument`, because a signal would reach one node only, and because torchrun passes signals
    on with 30 seconds' notice, too little for a large save.

    Raises:
        Stopped: they did.
        PipelineError: a process failed (its own message is above in the log), or there is no launcher for the nodes.
    """
    stop, failed = argument.with_name(STOP), argument.with_name(FAILED)
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={execution.ranks}"]
    command += ["--signals-to-handle=SIGINT"]
    if execution.nodes == 1:
        command += ["--standalone", "-m", module, str(argument)]
    else:
        meeting = [f"--rdzv-endpoint={socket.gethostname()}:{free_port()}", f"--rdzv-id={uuid.uuid4().hex[:8]}"]
        command += [f"--nnodes={execution.nodes}", "--rdzv-backend=c10d", *meeting, "-m", module, str(argument)]
        failed.unlink(missing_ok=True)
        script = argument.with_name("torchrun.sh")
        write_atomic(script, node_script(command, failed.resolve()))
        command = [*launcher(execution), "sh", str(script.resolve())]
    # A session of its own, so that a scheduler that signals this process's group does not end the launcher.
    process = subprocess.Popen(
        command,
        start_new_session=True,
        preexec_fn=_prepare,
    )
    asked: list[int] = []

    def ask(number: int, _: object) -> None:
        asked.append(number)
        stop.touch()

    before = signal.signal(signal.SIGTERM, ask)
    try:
        status = process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    if not status and execution.nodes > 1 and failed.exists():
        status = int(failed.read_text())  # pbsdsh does not tell
    if status and asked:
        raise Stopped("stopped and saved, as asked by SIGTERM; the same command continues")
    if status:
        raise PipelineError(
            f"training on {execution.processes} ranks ended with status {status}; the reason is above in this log"
        )


def _prepare() -> None:
    """In torchrun's process: it outlives SIGTERM, which its ranks heed, and dies with the stage."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def node_script(command: list[str], failed: Path) -> str:
    """What each node runs: this process's folder and settings, torchrun, and a word in `failed` if it failed."""
    settings = {k: v for k, v in sorted(os.environ.items()) if k.startswith(PASSED_ON)}
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in settings.items())
    note = f"status=$?\n[ $status = 0 ] || echo $status > {shlex.quote(str(failed))}\nexit $status\n"
    return f"trap '' TERM\n{exports}cd {shlex.quote(str(Path.cwd()))}\n{shlex.join(command)}\n{note}"


def launcher(execution: Execution) -> list[str]:
    """The command that runs a program once on every node of this job.

    Raises:
        PipelineError: there are several nodes to use, and this is not a job of a scheduler.
    """
    match allocation():
        case "slurm":
            # All that the job has: this stage already runs in a step of it, which holds the same CPUs and GPUs
            # (--overlap) and whose own shape (SLURM_*, left out) is not that of the new one.
            inherited = [f"--unset={name}" for name in os.environ if name.startswith("SLURM_") and name not in KEPT]
            size = [f"--nodes={execution.nodes}", f"--ntasks={execution.nodes}", "--ntasks-per-node=1"]
            return ["env", *inherited, "srun", "--overlap", *size, "--mem=0", "--cpu-bind=none", "--kill-on-bad-exit=1"]
        case "pbs":
            return ["pbsdsh", "--"]
    raise PipelineError(
        f"--nodes {execution.nodes}: several nodes are used in a Slurm or PBS job only, and this is none; "
        "run with --profile profiles/slurm or profiles/pbs, or use one node"
    )
