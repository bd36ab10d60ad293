"""What a proxy reads in the head of a request before it believes any of it. Pure.

A request that two servers could read in two ways is how one request is smuggled inside another. So the grammar is
narrower than what servers take: one kind of line end, no folded lines, one Host, one way to tell the body's length.
The framing itself, and everything about responses, is h11's; what h11 tolerates beyond this is refused here first.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from galley_vault_proxy.errors import GrantRefused, InvalidRequest, RequestError
from galley_vault_proxy.hosts import normal_host

Headers: TypeAlias = list[tuple[bytes, bytes]]

MAX_HEAD: Final = 64 * 1024
MAX_FIELDS: Final = 128
_TOKEN: Final = rb"[A-Za-z0-9!#$%&'*+.^_`|~-]"
_LINE: Final = re.compile(_TOKEN + rb"{1,32} [!-~]{1,32768} HTTP/1\.[01]")
_FIELD: Final = re.compile(_TOKEN + rb"{1,256}:[\t -~\x80-\xff]*")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

# Between one hop and the next only; RFC 9110 section 7.6.1, and what is older than that.
HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    )
)


class BadRequest(InvalidRequest):
    """The request is not one that everybody reads alike."""


class HeadTooLarge(RequestError):
    status = 431
    type = "invalid_request_error"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request goes. `host` in its normal spelling."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """As it stands in Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def check_lines(raw: bytes) -> None:
    """Raise BadRequest unless the head, up to and with its empty line, is written as everybody reads it."""
    lines = raw.split(b"\r\n")
    if len(lines) - 3 > MAX_FIELDS:
        raise HeadTooLarge(f"the request has more than {MAX_FIELDS} header fields", error_code="head_too_large")
    if not _LINE.fullmatch(lines[0]):
        raise _smuggling("its first line is not `METHOD TARGET HTTP/1.1`")
    for line in lines[1:-2]:
        if line[:1] in (b" ", b"\t"):
            raise _smuggling("a header field is folded over two lines")
        # A bare CR or LF is still in its line here, and is not among the characters of a field.
        if not _FIELD.fullmatch(line):
            raise _smuggling("a header field is malformed: lines end with CRLF, and no space stands before the colon")


def check_framing(headers: Sequence[tuple[bytes, bytes]], *, http_1_0: bool) -> None:
    """Raise BadRequest unless Host and the body's length are said once and without contradiction. Names: lower case."""
    hosts, lengths, codings = (
        [value for name, value in headers if name == wanted]
        for wanted in (b"host", b"content-length", b"transfer-encoding")
    )
    if len(hosts) > 1 or (not hosts and not http_1_0):
        raise _smuggling("it must have exactly one Host")
    if lengths and codings:
        raise _smuggling("Content-Length and Transfer-Encoding contradict each other")
    if len(lengths) > 1 or (lengths and not _LENGTH.fullmatch(lengths[0])):
        raise _smuggling("it must have one Content-Length, a number")
    if len(codings) > 1 or (codings and (http_1_0 or codings[0].lower() != b"chunked")):
        raise _smuggling("the only Transfer-Encoding is one `chunked`, in HTTP/1.1")


def grant_token(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """The grant in Proxy-Authorization. Raises GrantRefused, BadRequest."""
    found = [value for name, value in headers if name == b"proxy-authorization"]
    if not found:
        raise GrantRefused("missing")
    if len(found) > 1:
        raise BadRequest("the request has two Proxy-Authorization fields", error_code="bad_request")
    scheme, _, rest = found[0].decode("latin-1").partition(" ")
    match scheme.lower():
        case "bearer":
            return rest.strip()
        case "basic":
            return _password(rest.strip())
        case _:
            raise GrantRefused("malformed")


def connect_target(target: str) -> Origin:
    """`host:port` of a CONNECT. Raises BadRequest."""
    host, _, port = target.rpartition(":")
    return Origin("https", _host(host), _port(port))


def absolute_target(target: str) -> tuple[Origin, str]:
    """The origin and the origin's own target in `http://host[:port]/path?query`. Raises BadRequest."""
    scheme, separator, rest = target.partition("://")
    if not separator:
        raise BadRequest(
            "this is an HTTP proxy: ask for `http://HOST/PATH`, or for HTTPS with CONNECT",
            error_code="not_a_proxy_request",
        )
    if scheme.lower() != "http":
        raise BadRequest("only http:// is asked for in this way; https:// goes with CONNECT", error_code="bad_request")
    cut = re.search(r"[/?#]", rest)
    authority, tail = (rest, "") if cut is None else (rest[: cut.start()], rest[cut.start() :])
    if "#" in tail or "@" in authority:
        raise BadRequest("a request's URL has no fragment and no user name", error_code="bad_request")
    return authority_of(authority, "http"), tail if tail.startswith("/") else "/" + tail


def authority_of(text: str, scheme: str) -> Origin:
    """`host[:port]`, as in Host. Raises BadRequest."""
    bracket = text.rfind("]")
    colon = text.rfind(":")
    if colon > bracket:
        return Origin(scheme, _host(text[:colon]), _port(text[colon + 1 :]))
    return Origin(scheme, _host(text), _DEFAULT_PORTS[scheme])


def check_host(headers: Sequence[tuple[bytes, bytes]], origin: Origin) -> None:
    """Raise BadRequest unless Host, if it is there, names the origin."""
    for name, value in headers:
        if name == b"host" and authority_of(value.decode("latin-1").strip(), origin.scheme) != origin:
            raise BadRequest(f"Host is not {origin.authority}, where this request goes", error_code="host_mismatch")


def check_connect_host(headers: Sequence[tuple[bytes, bytes]], origin: Origin) -> None:
    """As `check_host` for a CONNECT, whose Host some clients write without the port."""
    for name, value in headers:
        if name == b"host":
            said = authority_of(value.decode("latin-1").strip(), "https")
            if said.host != origin.host or said.port not in (origin.port, _DEFAULT_PORTS["https"]):
                raise BadRequest(
                    f"Host is not {origin.authority}, which is to be connected to", error_code="host_mismatch"
                )


def path_of(target: str) -> str:
    return target.partition("?")[0]


def end_to_end(headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    """What goes on to the next hop."""
    named = {
        option.strip().lower()
        for name, value in headers
        if name.lower() == b"connection"
        for option in value.split(b",")
    }
    dropped = HOP_BY_HOP | (named - {b"host", b"content-length"})
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def asks_for_websocket(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Every other upgrade is left out: HTTP/2 inside would be a connection that nobody reads."""
    upgrades = [value.lower() for name, value in headers if name == b"upgrade"]
    options = [
        option.strip().lower() for name, value in headers if name == b"connection" for option in value.split(b",")
    ]
    return upgrades == [b"websocket"] and b"upgrade" in options


def _host(text: str) -> str:
    try:
        if text != text.strip():
            raise ValueError
        return normal_host(text)
    except ValueError:
        raise BadRequest("the request names something that is not a host", error_code="bad_host") from None


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or not 0 < int(text) < 65536:
        raise BadRequest("the request names something that is not a port: 1 to 65535", error_code="bad_port")
    return int(text)


def _password(coded: str) -> str:
    try:
        _, _, password = base64.b64decode(coded, validate=True).decode("latin-1").partition(":")
    except (binascii.Error, ValueError):
        raise GrantRefused("malformed") from None
    if not password:
        raise GrantRefused("malformed")
    return password


def _smuggling(what: str) -> BadRequest:
    return BadRequest(f"the request is refused: {what}", error_code="malformed_request")
