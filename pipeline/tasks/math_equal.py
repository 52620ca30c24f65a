"""Whether two mathematical expressions are equal, by math-verify.

Some expressions never finish, also inside one call of C code where no Python signal handler runs, so math-verify
works in a process of its own that the kernel ends after `SECONDS`. That process is this file, which imports nothing
else of the project. It stays alive, because math-verify takes a CPU second to start and short answers come one at a
time; whole texts, which come many at a time and may be anything, are compared in the sandbox (`tasks/code/answers.py`).
"""

import json
import resource
import subprocess
import sys
import threading

SECONDS = 5  # of CPU time, for one comparison
MEMORY = 2 << 30  # bytes of address space for comparisons


class Checker:
    """math-verify in a process of its own, started when first asked and again after it was ended."""

    def __init__(self, seconds: int = SECONDS) -> None:
        self.seconds = seconds
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()

    def ask(self, answer: str, gold: str) -> bool:
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.process = subprocess.Popen(
                    [sys.executable, "-I", __file__, str(self.seconds)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            assert self.process.stdin is not None and self.process.stdout is not None
            try:
                self.process.stdin.write(json.dumps([answer, gold]) + "\n")
                self.process.stdin.flush()
                reply = self.process.stdout.readline()
            except BrokenPipeError:
                reply = ""
            if not reply:  # ended by its timer, or out of memory
                self.process.kill()
                self.process.wait()
            return reply == "true\n"


_CHECKER = Checker()


def equal(answer: str, gold: str) -> bool:
    """Whether math-verify finds two expressions equal; False if it cannot tell within `SECONDS`."""
    return _CHECKER.ask(answer, gold)


def compare(answer: str, gold: str, seconds: int) -> bool:
    """Whether math-verify finds the gold answer in `answer`; the kernel ends the process if it takes longer.

    It uses nothing else of this module, because its source is also part of a program (`tasks/code/answers.py`).
    """
    import signal

    from math_verify import parse, verify

    # CPU seconds, so that a busy machine makes no right answer wrong. SIGPROF without a handler: not even a single
    # endless call of C code outlives it.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        same = verify(parse(gold, parsing_timeout=None), parse(answer, parsing_timeout=None), timeout_seconds=None)
    except Exception:  # whatever sympy makes of a model's text, it is not the gold answer
        same = False
    signal.setitimer(signal.ITIMER_PROF, 0)
    return bool(same)


def _serve(seconds: int) -> None:
    """Compare pairs read from standard input; the kernel ends this process if one takes longer."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        answer, gold = json.loads(line)
        print(json.dumps(compare(f"${answer}$", f"${gold}$", seconds)), flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
