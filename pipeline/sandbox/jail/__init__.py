"""The inside of `pipeline.sandbox.run`: a process of its own that needs nothing but Python's standard library.

kernel   Linux system calls that Python has no function for
serve    the process: takes programs, confines each, reports how it ended
"""
