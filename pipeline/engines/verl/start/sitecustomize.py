"""Python imports this when it starts in any of verl's processes: each of them imports thousands of modules.

The garbage collector looks at all that was imported, again and again, and once more when the process ends: a quarter of
the CPU time that a process takes to start. It is made to look less often, and at the end not at all. No number changes.
"""

import atexit
import gc

gc.set_threshold(50_000, 20, 100)  # Python's own are 700, 10, 10
atexit.register(gc.freeze)
