"""Python's garbage collector, in processes that import an engine.

Engines have thousands of modules, and the collector looks at all that was imported again and again, and once more when
the process ends: a quarter of the CPU time that such a process takes to start. No number changes by looking less often.
"""

import atexit
import gc


def look_less_often() -> None:
    """Have the collector look at what this process allocates less often, and at its end not at all."""
    gc.set_threshold(50_000, 20, 100)  # Python's own are 700, 10, 10
    atexit.register(gc.freeze)
