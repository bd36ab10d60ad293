"""Where a Galley home is, and which socket in it is the server's. Standard library only: the stdio shim imports it."""

import os
import socket
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from galley_server.errors import ConfigError

# sun_path holds 108 bytes on Linux and 104 on macOS, the final NUL included.
SOCKET_PATH_LIMIT = 100
SOCKET = "galley.sock"


def home_of(environ: Mapping[str, str], platform: str = sys.platform) -> Path:
    """The directory named by GALLEY_HOME, else the platform's data directory (what platformdirs would answer)."""
    chosen = environ.get("GALLEY_HOME", "").strip()
    if chosen:
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    user = Path(environ.get("HOME") or os.path.expanduser("~"))
    if platform == "win32":
        local = environ.get("LOCALAPPDATA") or str(user / "AppData" / "Local")
        return Path(local) / "galley" / "galley"
    if platform == "darwin":
        return user / "Library" / "Application Support" / "galley"
    data = environ.get("XDG_DATA_HOME", "").strip()
    return (Path(data) if data else user / ".local" / "share") / "galley"


def run_dir(home: Path) -> Path:
    """`home/run`, made if need be, ours and closed to everybody else."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    run = home / "run"
    with suppress(FileExistsError):
        run.mkdir(mode=0o700)
    require_private(run)
    return run


def require_private(directory: Path) -> None:
    """Refuse a directory in which somebody else could put a socket of their own."""
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{directory} is not a directory: remove it and start again")
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"{directory} belongs to uid {found.st_uid}, not to you (uid {os.geteuid()}): "
            "set GALLEY_HOME to a directory of your own"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        directory.chmod(0o700)


def socket_to_bind(home: Path, name: str = SOCKET) -> Path:
    """Where something of the home listens, its server if nothing else is named.

    A home with a long path cannot hold its own socket. The socket then lies in a private directory with an
    unguessable short name, and a pointer file in the home says where: nobody can sit on the name beforehand,
    and it does not depend on environment variables that a shim and its server may see differently.
    """
    run = run_dir(home)
    direct = run / name
    if len(os.fsencode(direct)) <= SOCKET_PATH_LIMIT:
        return direct
    kept = _pointed_at(run, name)
    if kept is not None:
        return kept
    short = Path("/tmp") / f"galley-{os.urandom(8).hex()}"
    short.mkdir(mode=0o700)
    fresh = run / f"{name}.path.new"
    fresh.write_text(str(short / name))
    fresh.replace(run / f"{name}.path")
    return short / name


def socket_to_dial(home: Path, name: str = SOCKET) -> Path | None:
    """Where it would answer; None when the home's path is long and nothing of that name ever listened."""
    run = run_dir(home)
    direct = run / name
    return direct if len(os.fsencode(direct)) <= SOCKET_PATH_LIMIT else _pointed_at(run, name)


def answers(socket_path: Path | None) -> bool:
    """Whether anybody listens there. A file alone says nothing: it outlives a server that was killed."""
    if socket_path is None:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(os.fspath(socket_path)) == 0


def _pointed_at(run: Path, name: str) -> Path | None:
    try:
        pointed = Path((run / f"{name}.path").read_text())
        require_private(pointed.parent)
    except (OSError, ValueError):
        return None  # the pointer is gone or outlived its directory; the next server writes a new one
    return pointed
