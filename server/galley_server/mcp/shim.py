"""`galley mcp`: MCP on stdio for one client, passed on to a Galley server. Standard library only, for a quick start."""

import os
import sys
from collections.abc import Mapping


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Serve this process's stdin and stdout until the client closes them. The exit status."""
    try:
        if environ.get("GALLEY_URL", "").strip():
            return _run_remote(environ)
        return _run_local(environ)
    except KeyboardInterrupt:
        return 130


def _run_local(environ: Mapping[str, str]) -> int:
    if sys.platform == "win32":
        sys.stderr.write("galley mcp: Windows needs GALLEY_URL, the address of a Galley server (for example in WSL).\n")
        return 2
    # Imported here: each way costs start-up time that the other need not pay, and this one does not exist on Windows.
    from galley_server.errors import GalleyError
    from galley_server.home import home_of, run_dir
    from galley_server.mcp.launch import Launcher
    from galley_server.mcp.local import LocalShim

    home = home_of(environ)
    try:
        run_dir(home)
    except (GalleyError, OSError) as error:
        sys.stderr.write(f"galley mcp: {error}\n")
        return 2
    LocalShim(Launcher(home, environ)).run()
    return 0


def _run_remote(environ: Mapping[str, str]) -> int:
    # Imported here: http.client and ssl are most of the start-up time of this way.
    from galley_server.errors import GalleyError
    from galley_server.mcp.remote import RemoteShim

    try:
        shim = RemoteShim.from_env(environ)
    except GalleyError as error:
        sys.stderr.write(f"galley mcp: {error}\n")
        return 2
    shim.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
