"""Placeholders become secrets on the way out: where, for whom, and written how. Pure.

A placeholder is swapped in the locations that its credential allows, towards its hosts only. In another location it
goes on as it is; towards another host nothing goes on at all, because somebody is trying the wrong door.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias
from urllib.parse import quote_plus

from galley_vault_proxy.credentials.port import EnvCredential
from galley_vault_proxy.egress.head import Headers
from galley_vault_proxy.errors import Denied, Unavailable
from galley_vault_proxy.hosts import host_matches
from galley_vault_proxy.redact import Patterns
from galley_vault_proxy.secret import Secret

_BASIC: Final = re.compile(rb"([Bb]asic +)([A-Za-z0-9+/]+={0,2})[ \t]*")
_NOT_IN_A_HEADER: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
Writing: TypeAlias = Callable[[Secret], bytes]
"""How a secret stands in a body, so that what it says there is the secret."""


class PlaceholderRefused(Denied):
    """A placeholder on its way to where its secret must not go."""

    def __init__(self, credential: EnvCredential, message: str, *, reason: str) -> None:
        super().__init__(message, reason=reason)
        self.credential = credential


class Placeholders:
    """A session's credentials, seen from one host. `used` grows with every swap."""

    def __init__(self, credentials: Sequence[EnvCredential], host: str, *, in_the_clear: bool = False) -> None:
        """`in_the_clear`: anybody on the way to the host can read what is sent."""
        self._host = host
        self._in_the_clear = in_the_clear
        self.here = tuple(credential for credential in credentials if is_for(credential, host))
        self._known: Mapping[bytes, EnvCredential] = {
            credential.placeholder.encode(): credential for credential in credentials
        }
        self._here = frozenset(credential.credential_id for credential in self.here)
        # The longest first, should one be the beginning of another.
        self._any = re.compile(b"|".join(map(re.escape, sorted(self._known, key=len, reverse=True))) or rb"(?!)")
        self.used: dict[str, EnvCredential] = {}
        self.patterns = Patterns(credential.secret for credential in self.here)

    @property
    def swaps_bodies(self) -> bool:
        return any("body" in credential.locations for credential in self.here)

    def check_target(self, target: str) -> None:
        """Raises PlaceholderRefused. In the URL nothing is ever swapped."""
        for match in self._any.finditer(target.encode()):
            self._credential(match[0])

    def headers(self, headers: Sequence[tuple[bytes, bytes]]) -> Headers:
        """The headers as they go on. Raises PlaceholderRefused, Unavailable."""
        if not self._known:
            return list(headers)
        return [(name, self._header(name, value)) for name, value in headers]

    def body(self, content_type: bytes | None) -> "BodySwap":
        return BodySwap(self, writing_for(content_type))

    def _header(self, name: bytes, value: bytes) -> bytes:
        swapped = self._any.sub(self._in_header, value)
        if name.lower() == b"authorization" and (basic := _BASIC.fullmatch(value)):
            # As git sends a token in a URL: the placeholder is there, under base64.
            try:
                plain = base64.b64decode(basic[2], validate=True)
            except binascii.Error:
                return swapped
            inner = self._any.sub(self._in_header, plain)
            if inner != plain:
                return basic[1] + base64.b64encode(inner)
        if swapped != value and _NOT_IN_A_HEADER.search(swapped):
            raise Unavailable("a credential holds characters that no header can carry: store it without line breaks")
        return swapped

    def _in_header(self, match: re.Match[bytes]) -> bytes:
        credential = self._credential(match[0])
        if "header" not in credential.locations:
            return match[0]
        self.used[credential.credential_id] = credential
        return credential.secret.reveal().encode()

    def _credential(self, placeholder: bytes) -> EnvCredential:
        credential = self._known[placeholder]
        if credential.credential_id not in self._here:
            raise PlaceholderRefused(
                credential,
                f"the placeholder of {credential.name} was about to be sent to {self._host}, "
                "which its credential is not for",
                reason="placeholder_elsewhere",
            )
        if self._in_the_clear:
            raise PlaceholderRefused(
                credential,
                f"{credential.name} is not sent to {self._host} over plain HTTP: use https://",
                reason="cleartext_secret",
            )
        return credential


class BodySwap:
    """Give each piece of a body to `feed`, pass on what it returns, and at the end what `flush` returns."""

    def __init__(self, placeholders: Placeholders, writing: Writing) -> None:
        self._placeholders = placeholders
        self._writing = writing
        self._known = tuple(placeholders._known)
        self._longest = max(map(len, self._known), default=0)
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Raises PlaceholderRefused."""
        if not self._known:
            return data
        data = self._held + data
        parts, done = self._swapped(data)
        keep = max(done, self._held_from(data))
        self._held = data[keep:]
        parts.append(data[done:keep])
        return b"".join(parts)

    def flush(self) -> bytes:
        rest, self._held = self._held, b""
        return rest

    def _swapped(self, data: bytes) -> tuple[list[bytes], int]:
        """What is swapped up to the last placeholder, and where that ends."""
        parts: list[bytes] = []
        done = 0
        for match in self._placeholders._any.finditer(data):
            credential = self._placeholders._credential(match[0])
            parts.append(data[done : match.start()])
            if "body" in credential.locations:
                self._placeholders.used[credential.credential_id] = credential
                parts.append(self._writing(credential.secret))
            else:
                parts.append(match[0])
            done = match.end()
        return parts, done

    def _held_from(self, data: bytes) -> int:
        """From where on the data may be the beginning of a placeholder."""
        for start in range(max(0, len(data) - self._longest + 1), len(data)):
            tail = data[start:]
            if any(placeholder.startswith(tail) for placeholder in self._known):
                return start
        return len(data)


def is_for(credential: EnvCredential, host: str) -> bool:
    return credential.hosts is None or any(host_matches(pattern, host) for pattern in credential.hosts)


def writing_for(content_type: bytes | None) -> Writing:
    """What a client that had the secret itself would have written into a body of this type."""
    kind = (content_type or b"").partition(b";")[0].strip().lower()
    if kind == b"application/x-www-form-urlencoded":
        return lambda secret: quote_plus(secret.reveal()).encode()
    if kind == b"application/json" or kind.endswith(b"+json"):
        return lambda secret: json.dumps(secret.reveal())[1:-1].encode()
    return lambda secret: secret.reveal().encode()
