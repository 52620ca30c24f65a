"""Kills a stage at a chosen place: Python imports this at start-up when its folder is on the path (test_kill.py).

KILL is "<stage> <place> <signal>", with place start, middle, before or after (publication).
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STAGE, PLACE, SIGNAL = os.environ.get("KILL", "none none SIGKILL").split()
ENGINE_STATE = {"pretrain": "step-*", "grpo": "checkpoints/latest_checkpointed_iteration.txt"}  # a first save
CHUNKED = ("tokenize", "benchmark", "decode", "taskloss")  # their first save is a file written in one piece


def kill() -> None:
    os.kill(os.getpid(), signal.Signals[SIGNAL])
    if SIGNAL == "SIGKILL" or signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        time.sleep(60)  # never returns


def killing(function: Callable[..., Any], after: bool = False, when: Callable[..., bool] = lambda *_: True) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not when(*args):
            return function(*args, **kwargs)
        if not after:
            kill()
        answer = function(*args, **kwargs)
        kill()
        return answer

    return call


def in_state(path: Path, *_: Any) -> bool:
    return "work-" in str(path)


def watch(pattern: str) -> None:
    """Kill when the stage has saved for the first time."""
    state = Path("results/.state")
    while not list(state.glob(f"**/{STAGE}/work-*/{pattern}")):
        time.sleep(0.001)
    kill()


if f"pipeline.stages.{STAGE}" in sys.orig_argv:
    from pipeline import runner
    from pipeline.artifacts import store

    if PLACE == "start":
        store.restore = killing(store.restore)
    elif PLACE in ("before", "after"):
        store.publish = killing(store.publish, after=PLACE == "after")
    elif STAGE in ENGINE_STATE:
        threading.Thread(target=watch, args=(ENGINE_STATE[STAGE],), daemon=True).start()
    elif STAGE in CHUNKED:
        store.write_atomic = killing(store.write_atomic, after=True, when=in_state)
    else:  # the line a stage says when its files are written
        runner.Context.say = killing(runner.Context.say)
