"""The command that starts a stdio server in a sandbox of its own. No I/O here but looking for programs."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from galley_vault_proxy.config import StdioServer
from galley_vault_proxy.mcp_door.failure import ServerFailed

HOME: Final = "/home/server"
_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_LINKS: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC: Final = (
    "alternatives",
    "ca-certificates",
    "hosts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "nsswitch.conf",
    "pki",
    "protocols",
    "resolv.conf",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
)
# No core file may hold the credential; no server may take every file descriptor. One limit at a time: a shell that
# takes several at once is not every /bin/sh. A hard limit on files that is lower already is as good.
_START: Final = 'ulimit -c 0 && { ulimit -n 4096 2>/dev/null || :; } && exec "$@"'


def command(server: StdioServer) -> list[str]:
    """Raises ServerFailed: without a sandbox no server is run, for it would see the proxy's own files."""
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise ServerFailed(
            "the vault proxy cannot run stdio servers: bubblewrap (bwrap) is not installed where it runs",
            reason="no_sandbox",
        )
    program = shutil.which(server.command, path=f"{_PATH}:{os.environ.get('PATH', '')}")
    if program is None:
        raise ServerFailed(
            f"the stdio server {server.name} cannot be run: there is no command {server.command}", reason="no_command"
        )
    network = [] if server.network else ["--unshare-net"]
    return [
        "/bin/sh",
        "-c",
        _START,
        "sh",
        bubblewrap,
        *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", *network),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "mcp-server"),
        *("--ro-bind", "/usr", "/usr", *_system()),
        *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/run", "--tmpfs", HOME),
        *_bound("--ro-bind", [*_needed(program), *server.read]),
        *_bound("--bind", server.write),
        *("--chdir", HOME, "--", program),
        *server.args,
    ]


def environment(server: StdioServer, credential: str | None) -> Mapping[str, str]:
    """All that the server sees. The credential is here and nowhere else: arguments can be read by everybody."""
    given = {"PATH": _PATH, "HOME": HOME, "TMPDIR": "/tmp", "LANG": "C.UTF-8", **server.env}
    if server.credential_env is not None and credential is not None:
        given[server.credential_env] = credential
    return given


def _system() -> list[str]:
    found: list[str] = []
    for name in _LINKS:
        path = Path("/", name)
        if path.is_symlink():
            found += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            found += ["--ro-bind", str(path), str(path)]
    for name in _ETC:
        found += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    return found


def _needed(program: str) -> list[str]:
    """The program itself and what it is a link to, where they are not in the system's own folders.

    Not the folder around it: that may be somebody's home. What else it needs stands in `read`.
    """
    links = [program]
    while os.path.islink(links[-1]) and len(links) < 8:
        links.append(os.path.normpath(os.path.join(os.path.dirname(links[-1]), os.readlink(links[-1]))))
    return [link for link in links if not link.startswith(("/usr/", "/bin/", "/sbin/", "/lib"))]


def _bound(option: str, paths: Sequence[str]) -> list[str]:
    return [part for path in paths for part in (option, path, path)]
