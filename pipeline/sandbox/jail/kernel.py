"""Linux system calls that Python 3.11 has no function for, each an `OSError` with its purpose when refused."""

import ctypes
import errno
import os
import platform
import struct

libc = ctypes.CDLL(None, use_errno=True)

NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x00020000,
    0x02000000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
AT_FDCWD, AT_RECURSIVE, SYS_MOUNT_SETATTR = -100, 0x8000, 442
CAPABILITY_VERSION_3 = 0x20080522
# What statvfs reports of a mount, as flags of mount(2); a read-only remount must repeat those it has.
STATVFS_FLAGS = {2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# System calls refused to programs: (x86_64, aarch64).
REFUSED = {
    # memory that RLIMIT_AS does not count
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # no benchmark needs them, and ways out of sandboxes have been found in them
    "unshare": (272, 97),
    "setns": (308, 268),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}
SOCKET = (41, 198)
# Unix, IPv4 and IPv6 sockets end at the network namespace; others, like those to a VM's host, need not.
FAMILIES = (1, 2, 10)
CLONE = (56, 220)
CLONE3 = 435  # its flags are out of a filter's sight; without it, glibc uses clone


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result


def unshare(flags: int) -> None:
    """Enter new namespaces."""
    _checked(libc.unshare(flags), "new namespaces (unshare)")


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    kind_bytes = kind.encode() if kind else None
    arguments = (source.encode(), target.encode(), kind_bytes, ctypes.c_ulong(flags), data.encode())
    _checked(libc.mount(*arguments), f"mount {kind or 'of ' + source} on {target}")


def pivot_root(new: str, old: str) -> None:
    """Make `new` the root and move the old one to `old`."""
    _checked(libc.pivot_root(new.encode(), old.encode()), "pivot_root")


def unmount(target: str) -> None:
    """Take a mount out of sight at once."""
    _checked(libc.umount2(target.encode(), MNT_DETACH), f"umount of {target}")


def _mount_setattr(path: str, attributes: int) -> int:
    request = struct.pack("QQQQ", attributes, 0, 0, 0)
    return int(libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), AT_RECURSIVE, request, len(request)))


def has_mount_setattr() -> bool:
    """Whether the kernel can make a whole tree of mounts read-only (Linux 5.12)."""
    return _mount_setattr("", 0) == 0 or ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM)


def make_read_only(path: str) -> None:
    """Make all mounts from `path` down read-only, without set-user-id programs."""
    _checked(_mount_setattr(path, MS_RDONLY | MS_NOSUID), f"read-only {path} (mount_setattr)")


def remount_read_only(path: str) -> None:
    """Make one mount read-only: the older way."""
    now = os.statvfs(path).f_flag
    keep = sum(flag for bit, flag in STATVFS_FLAGS.items() if now & bit)
    mount("none", path, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | keep)


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument."""
    _checked(libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def drop_capabilities() -> None:
    """Give up all capabilities; together with PR_SET_NO_NEW_PRIVS, irrevocably."""
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    _checked(libc.capset(header, bytes(24)), "capset")


def refuse_system_calls() -> bool:
    """Have the kernel answer the calls in `REFUSED`, new user namespaces and odd sockets with EPERM.

    Returns:
        Whether the filter is on: numbers are known for x86_64 and aarch64 only.
    """
    machine = platform.machine()
    if machine not in AUDIT_ARCH:
        return False
    column = list(AUDIT_ARCH).index(machine)
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    eperm, enosys, allow, kill = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS, 0x7FFF0000, 0x80000000
    rules = [
        (load, 0, 0, 4),
        (equal, 1, 0, AUDIT_ARCH[machine]),
        (give, 0, 0, kill),
        (load, 0, 0, 0),
        (at_least, 0, 1, 0x40000000),  # the x32 numbers of x86_64
        (give, 0, 0, eperm),
        (equal, 0, 1, CLONE3),
        (give, 0, 0, enosys),
    ]
    for numbers in REFUSED.values():
        rules += [(equal, 0, 1, numbers[column]), (give, 0, 0, eperm)]
    rules += [
        (equal, 0, 5, SOCKET[column]),
        (load, 0, 0, 16),  # the first argument
        *((equal, hit, 0, family) for hit, family in zip((3, 2, 1), FAMILIES, strict=True)),
        (give, 0, 0, eperm),
        (load, 0, 0, 0),
        (equal, 0, 3, CLONE[column]),
        (load, 0, 0, 16),
        (any_bit, 0, 1, NEWUSER),
        (give, 0, 0, eperm),
        (give, 0, 0, allow),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
    program = struct.pack("HP", len(rules), ctypes.addressof(code))
    _checked(libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0), "seccomp filter")
    return True
