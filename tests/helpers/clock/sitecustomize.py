"""Dates gone wild: each stage and each Snakemake of a cluster job gives every record some other date as it begins.

Python imports this at start-up when tests/workflow/test_dates.py puts the folder on the path. It stands for clocks of
nodes and file servers that are off by hours or jump, and for bundles unpacked with the dates of another machine.
"""

import itertools
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

DAY = 86400
DATES = (time.time() + DAY, 0, time.time() + 3650 * DAY, time.time() - DAY)

if any(argument.startswith("pipeline.stages.") or argument == "--allowed-rules" for argument in sys.orig_argv):
    which = itertools.cycle(DATES)
    for _ in range(os.getpid() % len(DATES)):
        next(which)
    for record in sorted(Path("results").rglob("record.json")):
        with suppress(FileNotFoundError):  # another job's, being published
            os.utime(record, (time.time(), next(which)))
