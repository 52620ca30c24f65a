"""A real Slurm on one machine, for tests: munged, slurmctld and slurmd in a folder of their own, gone afterwards.

    python -m tests.helpers.slurm snakemake --profile profiles/slurm --jobs 2 --config scale=smoke

runs a command with such a Slurm around it. Needs root and the Debian packages slurm-wlm and munge; installs nothing.
The nodes are pretended: each has 64 CPUs, 512 GB and 8 GPUs by its configuration, so that the profile's requests fit
whatever machine this is; jobs find no device behind them and run on CPU.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.runtime.quiet import quietly

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
GPUS = 8
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
# No cgroups, which a container does not let us make, and no accounting database.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
MpiDefault=none
ReturnToService=2
# Finished jobs stay visible to squeue, which Snakemake asks.
MinJobAge=600
KillWait=30
SchedulerParameters=batch_sched_delay=0,sched_interval=2,requeue_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports} CPUs=64 RealMemory=512000 Gres=gpu:{gpus}
PartitionName=batch Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2
"""


def missing() -> list[str]:
    """Why there can be no Slurm here; empty if there can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return absent or ([] if os.geteuid() == 0 else ["root"])


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on."""
    for first in range(17000, 32000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("", port))
            return first
        except OSError:
            continue
    raise RuntimeError("no free ports")


class Slurm:
    """The daemons, as a context. `environment` is what a client needs to talk to them.

    Their folder has a short name of its own: the path of a socket in it may have 108 characters, and where it has more,
    Slurm requeues each job for ever.
    """

    def __init__(self, nodes: int = 1) -> None:
        self.temporary = tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp", ignore_cleanup_errors=True)
        self.folder, self.nodes = Path(self.temporary.name), nodes
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("SBATCH_", "SLURM_"))}
        self.environment["PATH"] = f"{self.folder / 'bin'}:{self.environment['PATH']}"
        self.daemons: list[subprocess.Popen] = []

    def run(self, *command: str, timeout: float = 60) -> str:
        """A client's output."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=True
        )
        return done.stdout

    def _start(self, *command: str) -> None:
        log = (self.folder / f"{command[0]}.out").open("a")
        self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def __enter__(self) -> "Slurm":
        folder, port = self.folder, free_ports(self.nodes + 1)
        (folder / "state").mkdir(parents=True)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        several = self.nodes > 1
        settings = {
            "folder": folder,
            "host": socket.gethostname().split(".")[0],
            "port": port,
            "nodes": f"node[1-{self.nodes}]" if several else "node1",
            "ports": f"[{port + 1}-{port + self.nodes}]" if several else port + 1,
            "gpus": GPUS,
        }
        (folder / "slurm.conf").write_text(CONFIGURATION.format(**settings))
        # Snakemake's plugin takes SLURM_CONF out of the environment of its job steps: each client is told by a wrapper.
        (folder / "bin").mkdir()
        for name in (*PROGRAMS[1:], "squeue", "scontrol", "scancel", "sinfo"):
            wrapper = folder / "bin" / name
            wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which(name)} "$@"\n')
            wrapper.chmod(0o755)
        for i in range(GPUS):  # Slurm wants a file for each GPU and does not open it
            (folder / f"gpu{i}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
        paths = (f"--{what}={folder}/munge.{what.split('-')[0]}" for what in ("key-file", "pid-file", "log-file"))
        self._start("munged", "-F", "--force", *paths, f"--socket={folder}/munge.sock", f"--seed-file={folder}/seed")
        self._start("slurmctld", "-D")
        for i in range(self.nodes):
            (folder / f"spool-node{i + 1}").mkdir()
            self._start("slurmd", "-D", "-N", f"node{i + 1}")
        end = time.monotonic() + 60
        while not self._ready():
            if time.monotonic() > end or any(daemon.poll() is not None for daemon in self.daemons):
                logs = "\n".join(f"== {log}\n{log.read_text()[-2000:]}" for log in folder.glob("*.log"))
                self.__exit__()
                raise RuntimeError(f"Slurm did not start\n{logs}")
            time.sleep(0.2)
        return self

    def _ready(self) -> bool:
        command = ["sinfo", "--noheader", "--format=%t %D", "--partition=batch"]
        try:
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=20)
        except subprocess.TimeoutExpired:
            return False
        return done.stdout.strip() == f"idle {self.nodes}"

    def __exit__(self, *_: object) -> None:
        subprocess.run(["scancel", "--user=root"], env=self.environment, capture_output=True, timeout=60)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
        self.temporary.cleanup()


@quietly()
def main() -> int:
    if lacking := missing():
        print(f"error: a test Slurm needs {', '.join(lacking)} (Debian packages slurm-wlm and munge, run as root)")
        return 1
    with Slurm() as slurm:
        return subprocess.run(sys.argv[1:], env=slurm.environment).returncode


if __name__ == "__main__":
    sys.exit(main())
