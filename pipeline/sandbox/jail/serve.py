"""The jail process: confines one Python program after another and reports how each ended.

`pipeline.sandbox.run` starts it with an environment of its own and talks to it by lines of JSON: the first is `setup`,
each further one a program with its limits, answered by one line. For each program there are three processes:

    supervisor  enters new user, mount, network, process, IPC and host name namespaces; holds the clock and the output
    init        the namespace's process 1: builds the program's view of the file system; when it ends, all in the
                namespace are killed by the kernel; dies with the supervisor, which dies with this process
    program     process 2: limits, no capabilities, no privileges to gain, a filter of system calls; runs the text

The program runs inside the interpreter it was forked from: what confines it is the kernel, and a second interpreter
would cost more than all of it.
"""

import json
import os
import resource
import select
import signal
import socket
import sys
import time
import types
from typing import Any

from pipeline.sandbox.jail import kernel

NOBODY = 65534
OLD_ROOT = "/.old"
WORK = "/tmp"
INODES = 4096  # files in the work folder, at most
OPEN_FILES = 64
TOKEN = 16  # bytes that tell "ran to its last line" from os._exit(0)
Json = dict[str, Any]


def view(mounts: list[tuple[str, str]], tmp_mb: int, whole_trees: bool) -> None:
    """Make the root folder a read-only one with nothing but `mounts`, and an empty folder to write to.

    Args:
        mounts: (where it is, where the program sees it).
        whole_trees: the kernel can make mounts below mounts read-only too; if not, they are left out.
    """
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", WORK, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=755")
    os.chdir(WORK)
    os.mkdir("." + OLD_ROOT)
    kernel.pivot_root(".", "." + OLD_ROOT)
    os.chdir("/")
    for source, target in mounts:
        if os.path.isdir(OLD_ROOT + source):
            os.makedirs(target, 0o755)
        else:
            os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
            os.close(os.open(target, os.O_CREAT, 0o644))
        kernel.mount(OLD_ROOT + source, target, None, kernel.MS_BIND | (kernel.MS_REC if whole_trees else 0))
    kernel.unmount(OLD_ROOT)
    os.rmdir(OLD_ROOT)
    os.mkdir(WORK)
    if whole_trees:
        kernel.make_read_only("/")
    else:
        for path in ("/", *(target for _, target in mounts)):
            kernel.remount_read_only(path)
    size = f"size={tmp_mb}m,nr_inodes={INODES},mode=777"
    kernel.mount("tmpfs", WORK, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, size)


def set_limits(request: Json, others: int) -> None:
    """Limits of the program and its children; they hold for each process, so the number of processes is limited too.

    Args:
        others: processes of the same user that are there already.
    """
    memory, cpu = request["memory_mb"] << 20, request["timeout_s"]
    for name, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, request["tmp_mb"] << 20),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_NPROC, request["processes"] + others),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_STACK, min(memory, 8 << 20)),
    ):
        resource.setrlimit(name, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))


def program(setup: Json, request: Json, fds: tuple[int, int], done: int, as_root: bool) -> None:
    """Become the program: never returns. `done` gets the token if it runs to its end."""
    os.setsid()
    token_fd = os.dup2(done, OPEN_FILES - 1)
    for fd, at in zip(fds, (1, 2), strict=True):  # 0 is /dev/null already
        os.dup2(fd, at)
    os.closerange(3, token_fd)
    os.closerange(token_fd + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    if as_root:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    set_limits(request, others=0 if as_root else 2)  # root's processes are another user's than the program's
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.refuse_system_calls()

    os.chdir(WORK)
    sys.path[:] = setup["path"]
    sys.argv[:] = [f"{WORK}/program.py"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "pipeline"]:
        del sys.modules[name]
    main = types.ModuleType("__main__")
    main.__file__ = sys.argv[0]
    sys.modules["__main__"] = main
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    try:
        with open(sys.argv[0], "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(request["program"])
        exec(compile(request["program"], sys.argv[0], "exec"), main.__dict__)
        sys.stdout.flush()
        os.write(token_fd, request["token"])
        code = 0
    except SystemExit as error:
        os.write(2, f"SystemExit: {error.code}\n".encode())
    except BaseException as error:
        tail = error.__traceback__.tb_next if error.__traceback__ else None  # without the line above
        sys.excepthook(type(error), error.with_traceback(tail), tail)
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def init(setup: Json, request: Json, fds: tuple[int, int], report: int, as_root: bool) -> None:
    """Be process 1: build the view, start the program, reap whatever ends, report and end. Never returns."""
    end: Json = {}
    try:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # out of memory, the kernel ends this before the caller
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # process 1 is sent no signal that it has no handler for
        view(setup["mounts"], request["tmp_mb"], setup["whole_trees"])
        socket.sethostname("sandbox")
        request["token"] = os.urandom(TOKEN)
        report_end, done = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(report_end)
            os.close(report)
            program(setup, request, fds, done, as_root)
        for fd in (*fds, done):
            os.close(fd)
        while True:
            pid, status, usage = os.wait4(-1, 0)
            if pid == child:
                break
        os.set_blocking(report_end, False)
        try:
            complete = os.read(report_end, TOKEN) == request["token"]
        except BlockingIOError:  # a child of the program still holds the other end
            complete = False
        end = {"exit": os.waitstatus_to_exitcode(status), "complete": complete, "cpu": usage.ru_utime + usage.ru_stime}
    except OSError as error:
        end = {"refused": f"{error.filename or 'process 1'}: {error.strerror}"}
    finally:
        os.write(report, json.dumps(end).encode())
        os._exit(0)


def map_users(pid: int, lines: str) -> None:
    """Map users and groups of this machine to those of a new user namespace."""
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write(lines)


def enter(ready: int, go: int) -> bool:
    """Enter new namespaces; whether the program can become a user of its own in them."""
    user, group = os.geteuid(), os.getegid()
    new = kernel.NEWNS | kernel.NEWPID | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS | kernel.NEWCGROUP
    kernel.unshare(kernel.NEWUSER | new)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    os.write(ready, b"r")
    if os.read(go, 1) == b"2":  # the jail process could map two users
        return True
    with open("/proc/self/setgroups", "w") as file:
        file.write("deny")
    for name, number in (("uid_map", user), ("gid_map", group)):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(f"{NOBODY} {number} 1")
    return False


def watch(pid: int, outputs: tuple[int, int], report_end: int, request: Json) -> Json:
    """Collect what the program writes until it ends or must be ended."""
    texts: dict[int, bytearray] = {fd: bytearray() for fd in (*outputs, report_end)}
    started, status = time.monotonic(), None
    poll = select.poll()
    for fd in texts:
        poll.register(fd, select.POLLIN)
    open_fds, room = set(texts), request["output_kb"] << 10
    while open_fds:
        remaining = started + request["wall_s"] - time.monotonic()
        if remaining <= 0 and status is None:
            status = "timeout"
        if status is not None:
            os.kill(pid, signal.SIGKILL)  # and with it all of its namespace, so that the pipes end
        for fd, _ in poll.poll(None if status else remaining * 1000 + 1):
            data = os.read(fd, 1 << 16)
            if not data:
                poll.unregister(fd)
                open_fds.discard(fd)
            elif fd == report_end or status is None:
                texts[fd] += data
                room -= 0 if fd == report_end else len(data)
        if room < 0 and status is None:
            status = "output"
    os.waitpid(pid, 0)
    end = json.loads(texts[report_end] or "{}")
    if "refused" in end:
        return end
    if status is None:
        status = "ok" if end.get("complete") and end["exit"] == 0 else "failed"
        if end.get("exit") == -signal.SIGXCPU or end.get("cpu", 0) > request["timeout_s"] + 0.5:
            status = "timeout"
    out, err = (texts[fd][: request["output_kb"] << 10].decode(errors="replace") for fd in outputs)
    return {"status": status, "stdout": out, "stderr": err, "exit": end.get("exit"), "cpu_s": end.get("cpu", 0.0)}


def supervise(setup: Json, request: Json, ready: int, go: int) -> Json:
    """Run one program in new namespaces; the answer to its request."""
    try:
        as_root = enter(ready, go)
        (out, out_w), (err, err_w), (report_end, report) = os.pipe(), os.pipe(), os.pipe()
        pid = os.fork()
    except OSError as error:
        return {"refused": f"{error.filename or 'fork'}: {error.strerror}"}
    if pid == 0:
        for fd in (out, err, report_end, ready, go):
            os.close(fd)
        init(setup, request, (out_w, err_w), report, as_root)
    for fd in (out_w, err_w, report):
        os.close(fd)
    return watch(pid, (out, err), report_end, request)


def answer(setup: Json, request: Json) -> Json:
    """Have a supervisor run a program, and map two users for it where this process may."""
    started = time.monotonic()
    (ready, ready_w), (go, go_w), (result, result_w) = os.pipe(), os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        for fd in (ready, go_w, result):
            os.close(fd)
        text = json.dumps(supervise(setup, request, ready_w, go)).encode()
        with os.fdopen(result_w, "wb") as file:
            file.write(text)
        os._exit(0)
    for fd in (ready_w, go, result_w):
        os.close(fd)
    if os.read(ready, 1):
        users = b"1"
        if os.geteuid() == 0:
            try:
                map_users(pid, f"0 0 1\n{NOBODY} {NOBODY} 1\n")
                users = b"2"
            except OSError:  # root of a container that has one user; the supervisor reports other causes
                pass
        os.write(go_w, users)
    os.close(ready)
    os.close(go_w)
    with os.fdopen(result, "rb") as file:
        text = file.read()
    _, status = os.waitpid(pid, 0)
    if not text:
        return {"refused": f"the supervisor ended with status {os.waitstatus_to_exitcode(status)}"}
    return json.loads(text) | {"seconds": time.monotonic() - started}


def main() -> None:
    """Answer requests until the other side is gone."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4 * OPEN_FILES, 4 * OPEN_FILES))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other side's business
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    setup = json.loads(requests.readline())
    setup["whole_trees"] = kernel.has_mount_setattr()
    if os.getppid() != setup["parent"]:
        return
    for line in requests:
        answers.write(json.dumps(answer(setup, json.loads(line))).encode() + b"\n")
        answers.flush()
