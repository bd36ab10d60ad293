"""A system call filter for sandboxes without an engine: what no tool needs and what kernels have been broken with.

Docker has a filter of its own; bubblewrap has none. New user namespaces are refused
above all: inside one a process is root again, and most of the kernel opens up to it.
"""

import errno
import struct
from dataclasses import dataclass

_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_NR, _ARCH = 0, 4
_NEW_USER_NAMESPACE = 0x10000000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_X32 = 0x40000000


_CLONE3 = 435

# Each call's number on x86_64 and on aarch64.
_REFUSED = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "setns": (308, 268),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "open_by_handle_at": (304, 265),
    "quotactl": (179, 60),
    "acct": (163, 89),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "syslog": (103, 116),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
}


@dataclass(frozen=True, slots=True)
class _Machine:
    column: int
    audit: int
    clone: int
    unshare: int
    ioctl: int
    prlimit: int


_MACHINES = {
    "x86_64": _Machine(column=0, audit=0xC000003E, clone=56, unshare=272, ioctl=16, prlimit=302),
    "aarch64": _Machine(column=1, audit=0xC00000B7, clone=220, unshare=97, ioctl=29, prlimit=261),
}


def program(machine: str) -> bytes | None:
    """The filter for this machine, as the kernel takes it, or None where the numbers are not known."""
    numbers = _MACHINES.get(machine)
    if numbers is None:
        return None
    code = [
        _step(_LOAD, _ARCH),
        # Another personality (32-bit calls) has other numbers, so none of it is let through.
        _step(_EQUAL, numbers.audit, if_true=1),
        _fail(errno.EPERM),
        _step(_LOAD, _NR),
    ]
    if machine == "x86_64":
        code += [_step(_AT_LEAST, _X32, if_false=1), _fail(errno.EPERM)]
    for columns in _REFUSED.values():
        number = columns[numbers.column]
        code += [_step(_EQUAL, number, if_false=1), _fail(errno.EPERM)]
    # Its flags are in memory, out of a filter's sight; told that it does not exist, libraries use clone.
    code += [_step(_EQUAL, _CLONE3, if_false=1), _fail(errno.ENOSYS)]
    for number in (numbers.clone, numbers.unshare):
        code += _if_call(number, argument=0, test=_step(_ANY_BIT, _NEW_USER_NAMESPACE, if_false=1))
    for request in (_TIOCSTI, _TIOCLINUX):
        code += _if_call(numbers.ioctl, argument=1, test=_step(_EQUAL, request, if_false=1))
    # Where hand and tools share a user, nothing else would keep a tool from choking the hand's limits.
    code += _if_call(numbers.prlimit, argument=0, test=_step(_EQUAL, 0, if_true=1))
    code.append(_step(_RETURN, _ALLOW))
    return b"".join(code)


def _if_call(number: int, *, argument: int, test: bytes) -> list[bytes]:
    """Refuse call `number` unless `test` on an argument jumps over the refusal."""
    return [
        _step(_EQUAL, number, if_false=4),
        _step(_LOAD, 16 + 8 * argument),
        test,
        _fail(errno.EPERM),
        _step(_LOAD, _NR),
    ]


def _fail(number: int) -> bytes:
    return _step(_RETURN, _FAIL | number)


def _step(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
