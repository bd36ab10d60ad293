"""One request to the door once it is known who asks, for which server, and what. No I/O."""

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from galley_vault_proxy.credentials.port import Injection
from galley_vault_proxy.grant.token import Grant, ServerRule
from galley_vault_proxy.mcp_door.headers import RawHeaders
from galley_vault_proxy.mcp_door.jsonrpc import RpcMessage
from galley_vault_proxy.mcp_door.wire import Era

Principal: TypeAlias = tuple[str, str, str]
"""Whose sessions with servers these are: the session, its thread, and the tunnel that its grants are bound to.

Not the grant itself: a sandbox gets a new one before the old one ends, and goes on with the sessions that it has.
"""

_SEAL_CHARS: Final = 22


@dataclass(frozen=True, slots=True)
class Visit:
    """`headers` are those that pass, `given` those that must be single. `session_id` is the server's own."""

    grant: Grant
    rule: ServerRule
    verb: str
    headers: RawHeaders
    given: Mapping[bytes, str]
    era: Era
    message: RpcMessage | None = None
    body: bytes = b""
    session_id: str | None = None
    injection: Injection | None = None

    @property
    def principal(self) -> Principal:
        return principal(self.grant)

    def with_message(self, body: bytes, message: RpcMessage) -> "Visit":
        return replace(self, body=body, message=message)

    def with_session(self, session_id: str) -> "Visit":
        return replace(self, session_id=session_id)

    def with_injection(self, injection: Injection | None) -> "Visit":
        return replace(self, injection=injection)


def principal(grant: Grant) -> Principal:
    return grant.session_id, grant.thread_id or "", grant.tunnel or ""


class SessionSeal:
    """Binds a server's session id to who opened it: what a client holds is the id and a proof of whose it is.

    Nothing is kept for it, so it costs nothing, holds after a restart and in every process with the same key.
    """

    def __init__(self, key: bytes) -> None:
        self._key = hmac.digest(key, b"mcp-session-id", "sha256")

    def seal(self, session_id: str, whose: Principal, url: str) -> str:
        return f"{session_id}.{self._proof(session_id, whose, url)}"

    def open(self, sealed: str, whose: Principal, url: str) -> str | None:
        """The server's own id; None when this is nobody's, or somebody else's."""
        session_id, _, proof = sealed.rpartition(".")
        good = hmac.compare_digest(proof.encode(), self._proof(session_id, whose, url).encode())
        return session_id if good and session_id else None

    def _proof(self, session_id: str, whose: Principal, url: str) -> str:
        text = "\0".join((session_id, *whose, url)).encode()
        return urlsafe_b64encode(hmac.digest(self._key, text, "sha256")).decode()[:_SEAL_CHARS]
