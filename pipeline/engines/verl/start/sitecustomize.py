"""Python imports this when it starts in any of verl's processes: each of them imports thousands of modules."""

from pipeline.runtime.garbage import look_less_often

look_less_often()
