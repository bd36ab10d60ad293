"""The system call filter, run here step by step as the kernel would."""

import struct

import pytest
from galley_sandbox.bubblewrap.seccomp import program

X86, ARM = 0xC000003E, 0xC00000B7
ALLOW, EPERM, ENOSYS = "allow", "EPERM", "ENOSYS"
NEW_USER = 0x10000000


def decide(code: bytes, audit: int, number: int, *arguments: int) -> str:
    """Interpret the few instructions that the filter is made of."""
    words = list(arguments) + [0] * (6 - len(arguments))
    data = struct.pack("=IIQ6Q", number, audit, 0, *words)
    steps = list(struct.iter_unpack("=HBBI", code))
    position, accumulator = 0, 0
    while True:
        operation, if_true, if_false, value = steps[position]
        position += 1
        match operation:
            case 0x20:
                accumulator = struct.unpack_from("=I", data, value)[0]
            case 0x15:
                position += if_true if accumulator == value else if_false
            case 0x35:
                position += if_true if accumulator >= value else if_false
            case 0x45:
                position += if_true if accumulator & value else if_false
            case 0x06:
                return {0x7FFF0000: ALLOW, 0x00050001: EPERM, 0x00050026: ENOSYS}[value]
            case _:
                raise AssertionError(f"unknown operation {operation:#x}")


@pytest.mark.parametrize(
    ("machine", "audit", "number", "arguments", "verdict"),
    [
        ("x86_64", X86, 0, (), ALLOW),  # read
        ("x86_64", X86, 59, (), ALLOW),  # execve
        ("x86_64", X86, 101, (), ALLOW),  # ptrace: debuggers are welcome among tools
        ("x86_64", X86, 56, (0x11,), ALLOW),  # clone
        ("x86_64", X86, 56, (0x11 | NEW_USER,), EPERM),
        ("x86_64", X86, 272, (NEW_USER,), EPERM),  # unshare
        ("x86_64", X86, 272, (0x200,), ALLOW),
        ("x86_64", X86, 435, (), ENOSYS),  # clone3
        ("x86_64", X86, 165, (), EPERM),  # mount
        ("x86_64", X86, 425, (), EPERM),  # io_uring_setup
        ("x86_64", X86, 16, (0, 0x5401), ALLOW),  # ioctl TCGETS
        ("x86_64", X86, 16, (0, 0x5412), EPERM),  # ioctl TIOCSTI
        ("x86_64", X86, 302, (0, 7), ALLOW),  # prlimit64 of itself
        ("x86_64", X86, 302, (1, 7), EPERM),  # prlimit64 of the hand
        ("x86_64", X86, 0x40000000 | 59, (), EPERM),  # the x32 numbers
        ("x86_64", 0x40000003, 3, (), EPERM),  # 32-bit calls
        ("aarch64", ARM, 63, (), ALLOW),  # read
        ("aarch64", ARM, 40, (), EPERM),  # mount
        ("aarch64", ARM, 220, (NEW_USER,), EPERM),  # clone
    ],
)
def test_a_call_is_judged(machine: str, audit: int, number: int, arguments: tuple[int, ...], verdict: str) -> None:
    code = program(machine)
    assert code is not None
    assert decide(code, audit, number, *arguments) == verdict


def test_an_unknown_machine_has_no_filter() -> None:
    assert program("riscv64") is None
