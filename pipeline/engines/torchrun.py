"""Several ranks of one stage on this machine, through PyTorch's torchrun."""

import signal
import subprocess
import sys

from pipeline.engines.device import die_with_parent
from pipeline.errors import PipelineError


def torchrun(module: str, argument: str, ranks: int) -> None:
    """Run `python -m module argument` on `ranks` processes and wait. SIGTERM is passed on to them.

    Raises:
        PipelineError: a process failed; its own message is above in the log.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    process = subprocess.Popen([*command, "-m", module, argument], preexec_fn=lambda: die_with_parent(signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    status = process.wait()
    signal.signal(signal.SIGTERM, before)
    if status:
        raise PipelineError(f"training on {ranks} ranks ended with status {status}; the reason is above in this log")
