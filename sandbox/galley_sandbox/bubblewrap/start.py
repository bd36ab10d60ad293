"""Starting one sandbox with bubblewrap: its disk, its groups, its descriptors, its users."""

import asyncio
import hashlib
import json
import os
import socket
import subprocess
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from galley_sandbox import process, staging
from galley_sandbox.bubblewrap import cgroups, command, seccomp
from galley_sandbox.bubblewrap import state as states
from galley_sandbox.bubblewrap.host import Host
from galley_sandbox.bubblewrap.state import State
from galley_sandbox.errors import SandboxLost
from galley_sandbox.hand.config import Config, Gauge, render
from galley_sandbox.port import WORKSPACE, Limits
from galley_sandbox.threads import to_end

# Host users of sandboxes, above what subuid files and container managers hand out.
_FIRST_ID = 1_900_000_000
_NO_GAUGE = Gauge("", -1, "")


class Descriptor:
    """Closed once, by whoever comes first."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._open = True

    def close(self) -> None:
        if self._open:
            self._open = False
            os.close(self.number)


@dataclass(frozen=True, slots=True)
class Users:
    """Two users of the host that are this sandbox's alone."""

    hand: int
    tool: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A start, ready to go."""

    argv: list[str]
    environment: dict[str, str]
    passed: tuple[int, ...]
    log: int
    info: Descriptor
    info_of_child: Descriptor
    gate: Descriptor | None
    gate_of_child: Descriptor | None
    users: Users | None


def users_of(sandbox_id: str) -> Users:
    number = int.from_bytes(hashlib.sha256(sandbox_id.encode()).digest()[:3])
    return Users(hand=_FIRST_ID + 2 * number, tool=_FIRST_ID + 2 * number + 1)


def prepare(host: Host, root: Path, state: State, idle_exit_s: float, opened: ExitStack) -> Prepared:
    """Blocking. All that is opened is closed with `opened`; what is on disk is in the sandbox's folder."""
    stage = staging.stage(root, python=host.python)
    folder = root / state.id
    folder.mkdir(mode=0o700)
    states.write(folder, state)
    users = users_of(state.id) if host.is_root else None
    listener = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    with ShortPath(folder) as short:
        listener.bind(f"{short}/{states.SOCKET}")
    listener.listen(8)
    info, info_of_child = _report_pipe(opened)
    gate_of_child, gate = _pipe(opened) if users else (None, None)
    filter_file = _memory_file(seccomp.program(host.machine), opened)
    groups: list[Path] = []
    gauges = (_NO_GAUGE, _NO_GAUGE)
    if host.hierarchy is not None:
        groups = cgroups.create(host.hierarchy, state.id, state.limits)
        gauges = (
            _open_gauge(cgroups.memory_gauge(host.hierarchy, state.id), opened),
            _open_gauge(cgroups.pids_gauge(host.hierarchy, state.id), opened),
        )
    plan = command.Plan(
        bubblewrap=host.bubblewrap,
        python=host.python,
        stage=host.mount_base / "hand" if users else stage,
        disk=_disk(host, folder, state),
        system=command.system_dirs(host.system_links),
        extra_system=host.extra_system,
        info_fd=info_of_child.number,
        userns_block_fd=gate_of_child.number if gate_of_child else None,
        seccomp_fd=filter_file.number if filter_file else None,
    )
    passed = [listener.fileno(), *(gauge.fd for gauge in gauges if gauge.fd >= 0)]
    passed += [end.number for end in (info_of_child, gate_of_child, filter_file) if end is not None]
    return Prepared(
        argv=_script(host, folder, stage, groups, users, state.limits) + command.arguments(plan),
        environment=command.environment(render(_config(host, state, listener.fileno(), idle_exit_s, gauges))),
        passed=tuple(passed),
        log=opened.enter_context((folder / states.LOG).open("wb")).fileno(),
        info=info,
        info_of_child=info_of_child,
        gate=gate,
        gate_of_child=gate_of_child,
        users=users,
    )


def _script(
    host: Host, folder: Path, stage: Path, groups: list[Path], users: Users | None, limits: Limits
) -> list[str]:
    joined = " ".join(str(group) for group in groups)
    if users is None:
        return ["sh", "-c", command.USER_SCRIPT, "galley", joined]
    image = str(folder / states.IMAGE) if host.mkfs else ""
    size = str(min(limits.disk_bytes, limits.memory_bytes // 2))
    arguments = [str(host.mount_base), str(stage), image, size, str(users.hand), str(users.tool), joined]
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", command.ROOT_SCRIPT, "galley", *arguments]


def _disk(host: Host, folder: Path, state: State) -> command.Disk:
    size = state.limits.disk_bytes
    if host.is_root:
        if host.mkfs is not None:
            _make_image(host.mkfs, folder / states.IMAGE, size)
        return command.MountedDisk(host.mount_base)
    if host.sizes_tmpfs:
        # In memory, so it has to leave room for what runs.
        return command.TmpfsDisk(min(size, state.limits.memory_bytes // 2))
    for name in ("workspace", "session", "home", "tmp"):
        (folder / "disk" / name).mkdir(parents=True)
    return command.FolderDisk(folder / "disk")


def _make_image(mkfs: str, path: Path, size: int) -> None:
    with path.open("xb") as file:
        file.truncate(size)
    # No journal: the disk lives no longer than the sandbox. Nothing is written that is not needed: it stays sparse.
    options = ["-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard"]
    subprocess.run([mkfs, *options, str(path)], check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=20)


def _config(host: Host, state: State, listen_fd: int, idle_exit_s: float, gauges: tuple[Gauge, Gauge]) -> Config:
    limits = state.limits
    memory_held, pids_held = host.has("memory"), host.has("pids")
    return Config(
        incarnation=state.incarnation,
        listen_fd=listen_fd,
        listen_path="",
        tool_uid=command.TOOL_ID if host.is_root else -1,
        tool_gid=command.TOOL_ID if host.is_root else -1,
        home=command.HOME,
        workspace=WORKSPACE,
        session_dir=command.SESSION_DIR,
        idle_exit_s=idle_exit_s,
        wall_s=limits.wall_s,
        output_bytes=limits.output_bytes,
        cpu_s=max(1, int(limits.cpu_s)),
        max_processes=limits.pids if host.counts_processes else 0,
        max_address_space=0 if memory_held else limits.memory_bytes,
        max_file_size=0 if host.is_root or host.sizes_tmpfs else limits.disk_bytes,
        memory_gauge=gauges[0],
        pids_gauge=gauges[1] if pids_held else _NO_GAUGE,
    )


async def run(prepared: Prepared) -> int:
    """Start it and let it in; return the hand's process number. Raises SandboxLost, OSError."""
    script = await asyncio.create_subprocess_exec(
        *prepared.argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=prepared.log,
        stderr=prepared.log,
        env=prepared.environment,
        pass_fds=prepared.passed,
        start_new_session=True,
        cwd="/",
    )
    # Ours are closed at once, so that the end of the child is the end of its pipes.
    for end in (prepared.info_of_child, prepared.gate_of_child):
        if end is not None:
            end.close()
    try:
        # It leaves bubblewrap running, detached from us, and ends.
        if await script.wait() != 0:
            raise SandboxLost("the start script failed")
        pid = await _read_pid(prepared.info)
        if prepared.users is not None and prepared.gate is not None:
            await to_end(_let_in, pid, prepared.users, prepared.gate)
    except BaseException:
        await asyncio.shield(_undo(script, prepared.info))
        raise
    return pid


async def _undo(script: asyncio.subprocess.Process, info: Descriptor) -> None:
    """Nobody will know of this hand, so it must not live."""
    await script.wait()
    with suppress(SandboxLost):
        name = await asyncio.to_thread(process.name_of, await _read_pid(info))
        if name is not None:
            await process.kill(name, within_s=10)


async def _read_pid(info: Descriptor) -> int:
    """What bubblewrap says of its child, on a pipe that it closes then."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(info.number), "rb", 0)
    )
    try:
        said = await reader.readuntil(b"}")
    except asyncio.IncompleteReadError as e:
        raise SandboxLost("bubblewrap ended at once") from e
    finally:
        transport.close()
    return int(json.loads(said)["child-pid"])


def _let_in(pid: int, users: Users, gate: Descriptor) -> None:
    """As root: give the waiting name space its two users, shield the hand from the memory killer, let it go on."""
    maps = command.id_map(hand=users.hand, tool=users.tool)
    Path(f"/proc/{pid}/uid_map").write_text(maps)
    Path(f"/proc/{pid}/gid_map").write_text(maps)
    # A root without CAP_SYS_RESOURCE may not do this; tools then still go first, as theirs is raised.
    with suppress(PermissionError):
        Path(f"/proc/{pid}/oom_score_adj").write_text("-900")
    os.write(gate.number, b"1")


class ShortPath:
    """A name for `folder` that fits into a socket address, however deep the folder is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> str:
        self._fd = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}"

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _pipe(opened: ExitStack) -> tuple[Descriptor, Descriptor]:
    ends = [Descriptor(number) for number in os.pipe()]
    for end in ends:
        opened.callback(end.close)
    return ends[0], ends[1]


def _report_pipe(opened: ExitStack) -> tuple[Descriptor, Descriptor]:
    """A pipe whose writing end reads too, so that writing to it never fails.

    A bubblewrap that cannot report, because its server was killed, ends before it has let its child go on, and the
    child then waits for ever.
    """
    reading, writing = _pipe(opened)
    both = Descriptor(os.open(f"/proc/self/fd/{writing.number}", os.O_RDWR | os.O_CLOEXEC))
    opened.callback(both.close)
    writing.close()
    return reading, both


def _memory_file(data: bytes | None, opened: ExitStack) -> Descriptor | None:
    if data is None:
        return None
    file = Descriptor(os.memfd_create("galley-seccomp"))
    opened.callback(file.close)
    os.write(file.number, data)
    os.lseek(file.number, 0, os.SEEK_SET)
    return file


def _open_gauge(gauge: cgroups.Gauge | None, opened: ExitStack) -> Gauge:
    if gauge is None:
        return _NO_GAUGE
    try:
        return Gauge("", opened.enter_context(gauge.path.open("rb")).fileno(), gauge.key)
    except OSError:
        return _NO_GAUGE
