"""What runs in the sample's sandbox: shows what a grant opens and what it does not. Ends with 1 if it is otherwise.

It is given the variables of `grant.py`'s `environment`, and the code of an agent that calls a tool
(examples/sandbox_mcp_client/agent.py) as its first argument.
"""

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

OUTSIDE = os.environ.get("OUTSIDE", "https://outside.sample.internal:8443")
# As the secrets of the sample begin. In two pieces, so that this file is not found.
SECRET = ("sample-" + "secret-").encode()
_LARGEST = 8 << 20


class Wrong(Exception):
    """It is not as it should be."""


def a_tool(agent: str) -> str:
    called = subprocess.run(
        [sys.executable, agent, "sample", "add", '{"a": 2, "b": 3}'], capture_output=True, text=True
    )
    if called.stdout.strip() != "5":
        raise Wrong(called.stdout + called.stderr)
    return "an MCP tool was called: 2 + 3 = 5, on a server that wants a token which is not here"


def a_stdio_tool(agent: str) -> str:
    called = subprocess.run([sys.executable, agent, "local", "has_credential"], capture_output=True, text=True)
    if called.stdout.strip() != "true":
        raise Wrong(called.stdout + called.stderr)
    return "an MCP server that the broker runs itself has a credential in its own environment"


def no_other_tool(agent: str) -> str:
    listed = subprocess.run([sys.executable, agent, "sample"], capture_output=True, text=True)
    called = subprocess.run([sys.executable, agent, "sample", "drop_everything"], capture_output=True, text=True)
    if "add" not in listed.stdout or "drop_everything" in listed.stdout or called.returncode == 0:
        raise Wrong(listed.stdout + called.stdout + called.stderr)
    return "the server's other tool is not shown, and is refused when it is called all the same"


def a_host() -> str:
    asked = urllib.request.Request(f"{OUTSIDE}/echo", headers={"x-api-key": os.environ["SAMPLE_API_KEY"]})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        body = answer.read()
    said = json.loads(body)
    if not said["authorised"] or SECRET in body:
        raise Wrong(body.decode())
    return (
        f"an HTTPS API took the key: sent was {os.environ['SAMPLE_API_KEY'][:24]}..., "
        f"its echo came back as {said['headers']['x-api-key']}"
    )


def no_other_path() -> str:
    with_status(f"{OUTSIDE}/admin", 403)
    return "another path of that host is refused"


def no_other_host() -> str:
    try:
        urllib.request.urlopen("https://example.com/", timeout=30)
    except OSError as error:
        if "403" not in str(error):
            raise Wrong(str(error)) from None
    else:
        raise Wrong("https://example.com/ was reached")
    return "another host is refused"


def no_way_around() -> str:
    address = os.environ["OUTSIDE_ADDRESS"], urlsplit(OUTSIDE).port or 443
    try:
        socket.create_connection(address, timeout=3).close()
    except OSError:
        pass
    else:
        raise Wrong(f"{address} was reached without the broker")
    try:
        socket.getaddrinfo("example.com", 443)
    except OSError:
        return "there is no way around the broker: the same host's address is out of reach, and no name is resolved"
    raise Wrong("a name of the outside was resolved")


def no_api() -> str:
    """The admin API shares the MCP door's port where there is no tunnel; without the service key it says nothing."""
    base = os.environ["GALLEY_MCP_URL"].removesuffix("/mcp")
    token = Path(os.environ["GALLEY_TOKEN_FILE"]).read_text().strip()
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    asked = urllib.request.Request(f"{base}/v1/vaults", headers={"authorization": f"Bearer {token}"})
    try:
        direct.open(asked, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):
            return f"the broker's own API is closed to the grant ({error.code})"
        raise Wrong(str(error)) from None
    raise Wrong("the grant opened the broker's API")


def no_secret() -> str:
    searched = 0
    for path, content in readable():
        searched += 1
        if SECRET in content:
            raise Wrong(f"{path} holds a secret")
    return f"no secret is in any of {searched} files, nor in an environment of a process"


def readable() -> Iterator[tuple[Path, bytes]]:
    """What this user can read: its own folders, what was handed in, and each process's environment."""
    places = [Path(place) for place in ("/run", "/tmp", "/etc", "/home", "/opt/agent", "/var", "/root")]
    files = [path for place in places for path in walk(place)]
    files += [path for process in Path("/proc").glob("[0-9]*") for path in (process / "environ", process / "cmdline")]
    for path in files:
        try:
            with path.open("rb") as file:
                yield path, file.read(_LARGEST)
        except OSError:
            continue


def walk(place: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(place):
        for name in names:
            path = Path(folder, name)
            if path.is_file():
                yield path


def with_status(url: str, status: int) -> None:
    try:
        urllib.request.urlopen(url, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == status:
            return
        raise Wrong(f"{url}: {error.code} {error.read(500)!r}") from None
    raise Wrong(f"{url} was let through")


def main(agent: str) -> int:
    shown: list[Callable[[], str]] = [
        lambda: a_tool(agent),
        lambda: no_other_tool(agent),
        a_host,
        no_other_path,
        no_other_host,
        no_way_around,
        no_api,
        no_secret,
    ]
    if os.environ.get("SAMPLE_STDIO"):
        shown.insert(1, lambda: a_stdio_tool(agent))
    failed = 0
    for show in shown:
        try:
            line = f"ok    {show()}"
        except (Wrong, OSError, KeyError, ValueError) as error:
            failed += 1
            line = f"FAIL  {error}"
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
