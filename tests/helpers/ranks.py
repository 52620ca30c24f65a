"""What test_scheduler.py starts through torchrun: ranks that meet, say so, and stop when asked."""

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.runtime.torchrun import STOP

plan = Path(sys.argv[1])
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
line = f"{int(total.item())} {os.environ['OMP_NUM_THREADS']} {os.environ.get('PLANTED_TOKEN')}"
plan.with_name(f"rank-{dist.get_rank()}").write_text(line)
while plan.read_text() == "wait" and not plan.with_name(STOP).exists():
    time.sleep(0.1)
dist.barrier()
dist.destroy_process_group()
sys.exit({"go": 0, "wait": 1, "fail": 3}[plan.read_text()])
