"""Whether two mathematical expressions are equal, by math-verify.

It can meet expressions that never finish, also inside one call of C code where no Python signal handler runs, so it
works in a process of its own that the kernel ends after `SECONDS`. That process is this file, which imports nothing
else of the project.
"""

import json
import resource
import signal
import subprocess
import sys
import threading

SECONDS = 5  # for one comparison
MEMORY = 2 << 30  # bytes of address space for comparisons


class _Checker:
    """math-verify in a process of its own, started when first asked and again after it was ended."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()

    def ask(self, answer: str, gold: str) -> bool:
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.process = subprocess.Popen(
                    [sys.executable, "-I", __file__],
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
            if not reply:  # ended by its alarm, or out of memory
                self.process.kill()
                self.process.wait()
            return reply == "true\n"


_CHECKER = _Checker()


def equal(answer: str, gold: str) -> bool:
    """Whether math-verify finds two expressions equal; False if it cannot tell within `SECONDS`."""
    return _CHECKER.ask(answer, gold)


def _serve() -> None:
    """Compare pairs read from standard input; the kernel ends this process if one takes longer than `SECONDS`."""
    from math_verify import parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        answer, gold = json.loads(line)
        signal.alarm(SECONDS)  # SIGALRM without a handler: not even a single endless call of C code outlives it
        try:
            wanted, found = (parse(f"${one}$", parsing_timeout=None) for one in (gold, answer))
            same = verify(wanted, found, timeout_seconds=None)
        except Exception:  # whatever sympy makes of a model's text, it is not the gold answer
            same = False
        signal.alarm(0)
        print(json.dumps(bool(same)), flush=True)


if __name__ == "__main__":
    _serve()
