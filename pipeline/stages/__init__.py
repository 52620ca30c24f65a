"""One module per stage, read top to bottom; run as `python -m pipeline.stages.<stage>`.

Python imports this before any of them, and they import engines.
"""

from pipeline.runtime.garbage import look_less_often

look_less_often()
