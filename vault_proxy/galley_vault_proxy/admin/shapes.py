"""What the admin API takes and gives. Every text is bounded, every name checked, before it becomes a grant."""

import ipaddress
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, field_validator, model_validator

from galley_vault_proxy.audit import Verdict
from galley_vault_proxy.grant.rows import GrantRecord
from galley_vault_proxy.grant.token import Grant, HostRule, Network, ServerRule, milliseconds, moment
from galley_vault_proxy.hosts import normal_host, normal_pattern
from galley_vault_proxy.http.validation import RuleBroken, Strict
from galley_vault_proxy.ids import new_id
from galley_vault_proxy.presets import Preset

MAX_SECONDS: Final = 30 * 86_400
_STDIO: Final = re.compile(r"stdio:[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_METHOD: Final = re.compile(r"[A-Za-z][A-Za-z-]{0,31}")
_PATH: Final = re.compile(r"/[!-~]{0,511}")

Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$")]
VaultId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
TunnelId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
Status: TypeAlias = Literal["live", "expired", "revoked"]
ToolName = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class ServerParam(Strict):
    """One MCP server. The name is a segment of the door's path, so it holds no slash."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    url: Annotated[str, StringConstraints(min_length=1, max_length=2048)]
    tools: Annotated[tuple[ToolName, ...], Field(max_length=1024)] | None = None

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        if not name.isprintable() or name in (".", "..") or any(mark in name for mark in "/\\%?#"):
            raise RuleBroken("Use printable characters without / \\ % ? #: the name is a part of the door's path")
        return name

    @field_validator("url")
    @classmethod
    def _url(cls, url: str) -> str:
        if url.startswith("stdio:"):
            if not _STDIO.fullmatch(url):
                raise RuleBroken("Write stdio:NAME, with the NAME of a [stdio.NAME] table of the proxy's config")
            return url
        _check_url(url)
        return url


class HostParam(Strict):
    """One host, or all below a domain as `*.example.com`."""

    host: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    ports: Annotated[tuple[Annotated[int, Field(ge=1, le=65535)], ...], Field(min_length=1, max_length=64)] | None = (
        None
    )
    methods: Annotated[tuple[str, ...], Field(min_length=1, max_length=32)] | None = None
    paths: Annotated[tuple[str, ...], Field(min_length=1, max_length=128)] | None = None

    @field_validator("host")
    @classmethod
    def _host(cls, host: str) -> str:
        try:
            return normal_pattern(host)
        except ValueError:
            raise RuleBroken("Give a host name, an address, or *.example.com; no scheme, port or path") from None

    @field_validator("methods")
    @classmethod
    def _methods(cls, methods: Sequence[str] | None) -> Sequence[str] | None:
        for index, method in enumerate(methods or ()):
            if not _METHOD.fullmatch(method):
                raise RuleBroken("Give an HTTP method, e.g. GET", index)
        return None if methods is None else tuple(method.upper() for method in methods)

    @field_validator("paths")
    @classmethod
    def _paths(cls, paths: Sequence[str] | None) -> Sequence[str] | None:
        for index, path in enumerate(paths or ()):
            if not _PATH.fullmatch(path) or any(mark in path for mark in "?#*"):
                raise RuleBroken("Give the beginning of a path, e.g. /repos/acme: from a slash, without ? # *", index)
        return paths


class GrantCreate(Strict):
    """`POST /v1/grants`."""

    session_id: Id
    thread_id: Id | None = None
    vault_ids: Annotated[tuple[VaultId, ...], Field(max_length=50)] = ()
    mcp_servers: Annotated[tuple[ServerParam, ...], Field(max_length=64)] = ()
    hosts: Annotated[tuple[HostParam, ...], Field(max_length=256)] = ()
    presets: Annotated[tuple[Preset, ...], Field(max_length=8)] = ()
    network: Network = "limited"
    tunnel: TunnelId | None = None
    expires_in: Annotated[int, Field(ge=1, le=MAX_SECONDS)]

    @model_validator(mode="after")
    def _once(self) -> "GrantCreate":
        names = [server.name for server in self.mcp_servers]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise RuleBroken("Each server has a name of its own", "mcp_servers", index, "name")
        return self

    def grant(self, now: datetime) -> Grant:
        return Grant(
            id=new_id("grant"),
            session_id=self.session_id,
            thread_id=self.thread_id,
            vault_ids=tuple(dict.fromkeys(self.vault_ids)),
            servers=tuple(
                ServerRule(server.name, server.url, None if server.tools is None else frozenset(server.tools))
                for server in self.mcp_servers
            ),
            hosts=tuple(HostRule(rule.host, rule.ports, rule.methods, rule.paths) for rule in self.hosts),
            presets=tuple(dict.fromkeys(self.presets)),
            network=self.network,
            tunnel=self.tunnel,
            expires_at=moment(milliseconds(now + timedelta(seconds=self.expires_in))),
        )


class SessionParams(Strict):
    """The path of `DELETE /v1/sessions/{session_id}`."""

    session_id: Id


class SessionListParams(Strict):
    """The query of `GET /v1/sessions`."""

    after: Annotated[str, StringConstraints(max_length=128)] = ""
    limit: Annotated[int, Field(ge=1, le=10_000)] = 1000


class ListedSession(Strict):
    """A session with a grant that counts. Whoever runs the sessions ends those here that are over."""

    type: Literal["session"] = "session"
    id: str
    expires_at: datetime


class ListedSessions(Strict):
    """Ordered by id. `after` the last id is where the next page begins."""

    data: tuple[ListedSession, ...]
    has_more: bool


class IssuedGrant(Strict):
    """The only answer that ever holds a token."""

    type: Literal["grant"] = "grant"
    id: str
    token: str
    session_id: str
    thread_id: str | None
    expires_at: datetime


class ShownGrant(Strict):
    """`status` expired or revoked: the grant opens nothing any more."""

    type: Literal["grant"] = "grant"
    id: str
    session_id: str
    thread_id: str | None
    issued_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    status: Status


class RevokedGrant(Strict):
    type: Literal["grant_revoked"] = "grant_revoked"
    id: str


class RevokedSession(Strict):
    """`leases` pending: the grants are revoked, and the secret store is asked again until it has revoked the rest."""

    type: Literal["session_revoked"] = "session_revoked"
    id: str
    revoked_grants: int
    leases: Literal["revoked", "pending"]


class SessionEnvironment(Strict):
    """What a sandbox's environment holds in place of secrets: each variable's placeholder. Not secret."""

    type: Literal["session_environment"] = "session_environment"
    id: str
    variables: dict[str, str]


class EgressShown(Strict):
    """Where the egress door listens (null: for tunnels only), and what a sandbox must trust, beside what it does."""

    type: Literal["egress"] = "egress"
    url: str | None
    ca_pem: str


class AuditParams(Strict):
    """The query of `GET /v1/audit`."""

    session_id: Annotated[str, StringConstraints(max_length=128)] | None = None
    grant_id: Annotated[str, StringConstraints(max_length=128)] | None = None
    decision: Verdict | None = None
    after: Annotated[str, StringConstraints(max_length=64)] | None = None
    limit: Annotated[int, Field(ge=1, le=10_000)] = 1000


def shown(record: GrantRecord, now: datetime) -> ShownGrant:
    return ShownGrant(
        id=record.id,
        session_id=record.session_id,
        thread_id=record.thread_id,
        issued_at=record.issued_at,
        expires_at=record.expires_at,
        revoked_at=record.revoked_at,
        status=_status(record, now),
    )


def _status(record: GrantRecord, now: datetime) -> Status:
    if record.revoked_at is not None:
        return "revoked"
    return "expired" if record.expires_at <= now else "live"


def _check_url(url: str) -> None:
    right = "Give an http or https URL without user name and fragment, or stdio:NAME"
    try:
        parts = urlsplit(url)
        host = normal_host(parts.hostname or "")
        port_ok = parts.port is None or parts.port > 0
    except (ValueError, ipaddress.AddressValueError):
        raise RuleBroken(right) from None
    plain = url.isascii() and url.isprintable() and " " not in url and "\\" not in url
    if parts.scheme not in ("http", "https") or not host or not port_ok or "@" in parts.netloc or parts.fragment:
        raise RuleBroken(right)
    if not plain:
        raise RuleBroken("Write the URL percent-encoded, in printable ASCII without blanks")
