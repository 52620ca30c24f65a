"""How a command ends when the reader of what it prints goes away (`| head`), or at Ctrl-C: without a traceback."""

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


def reader_is_gone(stream: TextIO) -> bool:
    """Whether nobody reads the pipe that `stream` writes to; other broken pipes are faults of their own."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):  # closed, or no file
        return False


@contextmanager
def quietly() -> Iterator[None]:
    """Around a command's `main`: it ends with 141 when its reader is gone, with one line and 130 at Ctrl-C."""
    try:
        try:
            yield
        finally:
            with suppress(ValueError):  # closed
                sys.stdout.flush()
    except BrokenPipeError:
        gone = [stream for stream in (sys.stdout, sys.stderr) if reader_is_gone(stream)]
        if not gone:
            raise
        for stream in gone:  # the interpreter writes what is left as it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        with suppress(BrokenPipeError):
            print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
