"""Looking for planted secrets: every encoding of them, in files, and in the memory of processes."""

import base64
import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_PIECE = 1 << 24
_REGION = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) .*? *(\S*)$")


def forms(core: str) -> list[bytes]:
    """A core as somebody may have written it, whatever stands beside it.

    It is letters and digits, which no escaping of URLs, JSON or HTML changes. Of base64 it is the part that the
    neighbours do not touch.
    """
    raw = core.encode()
    found = [raw, raw.hex().encode(), raw.hex().upper().encode(), raw[::-1]]
    for before in range(3):
        inner = base64.b64encode(b"\0" * before + raw)[4:-4]
        found += [inner, inner.replace(b"+", b"-").replace(b"/", b"_")]
    return list(dict.fromkeys(found))


@dataclass
class Search:
    """`cores`: what each kind of planted secret has in it, and nothing else has."""

    cores: Mapping[str, str]

    def in_bytes(self, data: bytes, *, but: str | None = None) -> set[str]:
        """The names of those that are in it."""
        # Without its zeros UTF-16 reads as UTF-8, and of memory little is left.
        data = data.translate(None, b"\0")
        return {name for name, core in self.cores.items() if name != but and any(form in data for form in forms(core))}

    def in_files(self, folder: Path) -> set[str]:
        """In what files hold and how they are called. No link is followed: one in a sandbox would lead out of it."""
        found: set[str] = set()
        for parent, _, names in os.walk(folder) if not folder.is_symlink() else ():
            for path in (Path(parent, name) for name in names):
                found |= self.in_bytes(os.fsencode(path))
                with contextlib.suppress(OSError):
                    if path.is_file() and not path.is_symlink():
                        found |= self.in_bytes(path.read_bytes())
        return found

    def in_memory(self, pid: int, *, but: str | None = None) -> set[str]:
        """In everything that the process may write to, its arguments and its environment."""
        found: set[str] = set()
        for piece in memory_of(pid):
            found |= self.in_bytes(piece, but=but)
        for file in ("environ", "cmdline"):
            found |= self.in_bytes(Path(f"/proc/{pid}/{file}").read_bytes(), but=but)
        return found


def memory_of(pid: int) -> Iterator[bytes]:
    """What a process holds, in pieces that overlap, so that nothing is cut in two."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            region = _REGION.match(line)
            if region is None or not region[3].startswith("rw") or region[4] in ("[vvar]", "[vsyscall]"):
                continue
            start, end = int(region[1], 16), int(region[2], 16)
            while start < end:
                with contextlib.suppress(OSError, OverflowError):
                    memory.seek(start)
                    yield memory.read(min(_PIECE, end - start))
                start += _PIECE - 4096


def same_sandbox(pid: int) -> list[int]:
    """Every process that sees the same files as this one."""
    namespace = os.readlink(f"/proc/{pid}/ns/mnt")
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.readlink(entry / "ns" / "mnt") == namespace:
                found.append(int(entry.name))
    return found


def process_with(argument: str) -> int:
    """The one process that was started with this argument."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and argument.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    assert len(found) == 1, found
    return found[0]
