"""One module per stage, read top to bottom; run as `python -m pipeline.stages.<stage>`.

Python imports this before any of them. The engines that they import have thousands of modules, and the garbage
collector looks at all of those again and again, and once more when the process ends: of the six CPU seconds in which
convert starts that is one and a half. It is made to look less often, and at the end not at all. No number changes.
"""

import atexit
import gc

gc.set_threshold(50_000, 20, 100)  # Python's own are 700, 10, 10
atexit.register(gc.freeze)
