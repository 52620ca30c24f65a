"""Curves of a job while it runs, for TensorBoard: `tensorboard --logdir logs`.

They serve whoever watches. They are no part of an artifact, and no job fails because they cannot be written.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

INTERVAL_S = 0.2  # between two points of a curve: a step of a small model takes milliseconds, writing it 0.2 ms
SHARE = 0.001  # of the time so far, likewise: long runs of short steps would fill the disk
FLUSH_S = 10  # what TensorBoard may lag behind

Values = Mapping[str, float | None]


class Curves:
    """Event files of one job, one a launch; a context manager.

    Args:
        folder: made if it is not there; None for a process that writes none, such as a rank that is not the first.
        first: the first step that this launch does. What earlier launches wrote of it and of later steps is purged:
            they were killed after their last save, or had other settings.
    """

    def __init__(self, folder: Path | None, first: int) -> None:
        self.folder = folder
        self.writer: Any = None
        self.pending: tuple[int, str, Values] | None = None
        self.begun = self.due = time.monotonic()
        if folder:
            self._attempt(lambda: self._open(first))

    def _open(self, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard reads the files in the order of their names, whose second the launch before may have begun in.
        taken = [int(path.name.split(".")[3]) for path in Path(self.folder or "").glob("events.out.tfevents.*")]
        if 0 < (wait := max(taken, default=0) + 1 - time.time()) <= 1:
            time.sleep(wait)
        self.writer = SummaryWriter(self.folder, purge_step=first, flush_secs=FLUSH_S)

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            print(f"warning: {self.folder}: no curves for TensorBoard from here on: {error}", flush=True)
            self.writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
        if self.writer:
            self._attempt(self.writer.close)

    def step(self, step: int, group: str, values: Values) -> None:
        """What was measured at a step: a point at most every `INTERVAL_S` seconds, and the last one in any case."""
        self.pending, now = (step, group, values), time.monotonic()
        if now >= self.due:
            self.due = now + max(INTERVAL_S, SHARE * (now - self.begun))
            self._write_pending()

    def write(self, step: int, group: str, values: Values) -> None:
        """A point of each of the curves `group/name`; of a value that is None there is none."""
        for name, value in values.items():
            if self.writer and value is not None:
                self._attempt(partial(self.writer.add_scalar, f"{group}/{name}", value, step))

    def _write_pending(self) -> None:
        if self.pending:
            self.write(*self.pending)
        self.pending = None

    def flush(self) -> None:
        """Write all so far to disk: called before a save, whose launch may be killed after it."""
        self._write_pending()
        if self.writer:
            self._attempt(self.writer.flush)
