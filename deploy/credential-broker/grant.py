"""What a program that runs sandboxes does for each: has a grant made, puts it where the sandbox finds it, renews it.

    grant.py REQUEST.json FOLDER

REQUEST.json is the body of `POST /v1/grants` (docs/grants.md). FOLDER is what the sandbox gets to see, best a tmpfs; in
it appear, each 0600 and replaced in place when the grant is renewed at half its life:

    token           the grant
    environment     variables for a shell to read with `.`, placeholders for secrets among them; no secret
    ca.pem          the authority of the egress door
    ca-bundle.pem   the same, after the authorities that this machine trusts

When it is told to end (SIGTERM), the session ends too: its grants are revoked. Needs Python 3.11 and no package.
"""

import argparse
import hashlib
import hmac
import json
import os
import signal
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_RETRY_S = 5.0


class Refused(Exception):
    """The broker said no, or nothing."""


@dataclass(frozen=True)
class Broker:
    """The vault proxy, for whoever holds its service key."""

    url: str
    key_file: Path

    def key(self) -> str:
        return self.key_file.read_text().strip()

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Raises Refused."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"x-api-key": self.key(), "content-type": "application/json"},
        )
        # The broker is near: no proxy of the environment's is asked, which would learn the key.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise Refused(f"{method} {path}: {error.code} {error.read(2000).decode(errors='replace')}") from None
        except OSError as error:
            raise Refused(f"{method} {path}: {getattr(error, 'reason', error)}") from None


@dataclass(frozen=True)
class Doors:
    """Where the sandbox finds the two doors."""

    mcp_url: str
    egress_url: str


def environment(doors: Doors, folder: Path, token: str, placeholders: Mapping[str, str]) -> str:
    """Lines for a shell. A placeholder never takes the place of a variable that shows the way."""
    egress = urlsplit(doors.egress_url)
    proxy = f"http://grant:{token}@{egress.netloc}"
    # The MCP door is reached directly: what is sent to it goes through no proxy.
    nearby = ",".join(dict.fromkeys(["localhost", "127.0.0.1", "::1", urlsplit(doors.mcp_url).hostname or ""]))
    bundle = str(folder / "ca-bundle.pem")
    trusting = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "AWS_CA_BUNDLE")
    variables = {
        **placeholders,
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), proxy),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), nearby),
        "NODE_USE_ENV_PROXY": "1",
        **dict.fromkeys((*trusting, "CARGO_HTTP_CAINFO"), bundle),
        "NODE_EXTRA_CA_CERTS": str(folder / "ca.pem"),
        "GALLEY_MCP_URL": doors.mcp_url,
        "GALLEY_TOKEN_FILE": str(folder / "token"),
    }
    return "".join(f"export {name}={quoted(value)}\n" for name, value in variables.items())


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def greeting(key: str, tunnel: str) -> str:
    """The line that `forward.py` begins the connections of this tunnel with."""
    return f"GALLEY-TUNNEL/1 {tunnel} {hmac.digest(key.encode(), tunnel.encode(), hashlib.sha256).hex()}\n"


def put(path: Path, text: str, owner: int | None = None, mode: int = 0o600) -> None:
    """Whole or not at all, and for one user alone unless the mode says more."""
    draft = path.with_name(f".{path.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, mode)
        file.write(text)
        if owner is not None:
            os.fchown(descriptor, owner, -1)
    os.replace(draft, path)


@dataclass(frozen=True)
class Keeper:
    """Keeps one sandbox supplied. `seen_as`: where the sandbox sees the folder."""

    broker: Broker
    request: Mapping[str, Any]
    folder: Path
    seen_as: Path
    mcp_url: str | None
    egress_url: str | None
    greeting: Path | None
    owner: int | None

    def supply(self) -> float:
        """Have a grant made and put everything in its place; return for how many seconds it is good. Raises Refused."""
        grant = self.broker.ask("POST", "/v1/grants", self.request)
        door = self.broker.ask("GET", "/v1/egress")
        found = self.broker.ask("GET", f"/v1/sessions/{self.request['session_id']}/environment")
        doors = Doors(self.mcp_url or f"{self.broker.url}/mcp", self.egress_url or door["url"])
        if self.greeting is not None:
            # Not into the sandbox's folder: the sandbox must not be able to greet. The forwarder is of our group.
            put(self.greeting, greeting(self.broker.key(), self.request["tunnel"]), mode=0o640)
        put(self.folder / "ca.pem", door["ca_pem"], self.owner)
        put(self.folder / "ca-bundle.pem", f"{trusted_here()}\n{door['ca_pem']}", self.owner)
        put(self.folder / "token", grant["token"] + "\n", self.owner)
        # The last one: where it is, all is there.
        variables = environment(doors, self.seen_as, grant["token"], found["variables"])
        put(self.folder / "environment", variables, self.owner)
        return (datetime.fromisoformat(grant["expires_at"]) - datetime.now(UTC)).total_seconds()

    def keep(self) -> None:
        """Renew until told to end. A broker that is away is asked again and again."""
        told = {signal.SIGTERM, signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, told)
        wait, ends = 0.0, time.monotonic()
        while signal.sigtimedwait(told, wait) is None:
            try:
                seconds = self.supply()
            except Refused as error:
                say(f"not renewed, trying again: {error}" if time.monotonic() < ends else f"no grant: {error}")
                wait = _RETRY_S
            else:
                say(f"a grant for {seconds:.0f} s is in {self.folder}")
                wait, ends = seconds / 2, time.monotonic() + seconds

    def end(self) -> None:
        """Raises Refused."""
        self.broker.ask("DELETE", f"/v1/sessions/{self.request['session_id']}")


def trusted_here() -> str:
    paths = ssl.get_default_verify_paths()
    return Path(paths.cafile).read_text() if paths.cafile else ""


def say(line: str) -> None:
    sys.stderr.write(f"grant.py: {line}\n")
    sys.stderr.flush()


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Keep one sandbox supplied with a grant.")
    parser.add_argument("request", metavar="REQUEST.json", type=Path, help="the body of POST /v1/grants")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="what the sandbox sees")
    parser.add_argument("--broker", metavar="URL", default="http://127.0.0.1:8430", help="(default %(default)s)")
    parser.add_argument("--key-file", metavar="FILE", type=Path, required=True, help="the broker's service key")
    parser.add_argument("--seen-as", metavar="PATH", type=Path, help="where the sandbox sees FOLDER (default: there)")
    parser.add_argument("--mcp-url", metavar="URL", help="the MCP door as the sandbox reaches it (default BROKER/mcp)")
    parser.add_argument("--egress-url", metavar="URL", help="the egress door, likewise (default: as the broker says)")
    parser.add_argument("--greeting", metavar="FILE", type=Path, help="the greeting of the request's tunnel goes there")
    parser.add_argument("--owner", metavar="UID", type=int, help="the sandbox's user; to be somebody else's needs root")
    parser.add_argument("--once", action="store_true", help="do not stay and renew, and leave the session as it is")
    asked = parser.parse_args(words)
    request = json.loads(asked.request.read_text())
    if asked.greeting is not None and "tunnel" not in request:
        parser.error("--greeting needs a tunnel in the request")
    keeper = Keeper(
        Broker(asked.broker.rstrip("/"), asked.key_file),
        request,
        asked.folder.absolute(),
        asked.seen_as or asked.folder.absolute(),
        asked.mcp_url,
        asked.egress_url,
        asked.greeting,
        asked.owner,
    )
    try:
        if asked.once:
            keeper.supply()
            return 0
        keeper.keep()
        keeper.end()
    except Refused as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
