"""Tokens, token roles, identities and leases of one namespace.

The faults are meant: aliases are looked up case-folded, a lease that is being made while its token is revoked outlives
it, and a call's own maximum is lost at the first renewal.
"""

import asyncio
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from pydantic import JsonValue

from tests.vault_server.acl import globbed
from tests.vault_server.answers import Failure, Json, Reply, Unsupported, only, seconds, text, words

SYSTEM_MAX_S: Final = 768 * 3600
# A database user is dropped this long after the answer that says its token is revoked.
DROP_AFTER_S: Final = 0.008

_ROLE_FIELDS: Final = (
    "allowed_policies",
    "allowed_entity_aliases",
    "orphan",
    "token_type",
    "renewable",
    "token_no_default_policy",
    "token_explicit_max_ttl",
    "token_period",
    "token_bound_cidrs",
)


@dataclass(slots=True, eq=False)
class Token:
    id: str
    accessor: str
    policies: list[str]
    path: str
    made_at: float
    expires_at: float | None
    ttl_s: int = 0
    period_s: int = 0
    max_s: int = 0
    renewable: bool = True
    orphan: bool = True
    entity_id: str = ""
    role: str = ""
    display_name: str = "token"
    meta: dict[str, JsonValue] | None = None
    leases: list["Lease"] = field(default_factory=list)
    # Set for a wrapping token: what it wraps.
    wraps: "Wrapped | None" = None


@dataclass(frozen=True, slots=True)
class Wrapped:
    body: Json
    creation_path: str
    made_at: float
    ttl_s: int


@dataclass(slots=True, eq=False)
class Lease:
    id: str
    expires_at: float
    revoke: Callable[[], None]


@dataclass(slots=True)
class Entity:
    id: str
    # The spelling of the first token, which templates get, by the mount's accessor.
    alias: str
    disabled: bool = False


class Tokens:
    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.mount_accessor = f"auth_token_{secrets.token_hex(4)}"
        self.by_id: dict[str, Token] = {}
        self.roles: dict[str, dict[str, JsonValue]] = {}
        self.entities: dict[str, Entity] = {}
        self.leases: dict[str, Lease] = {}
        self._late: set[asyncio.TimerHandle] = set()

    def root(self) -> Token:
        token = self._new(["root"], "auth/token/root")
        token.display_name = "root"
        token.renewable = False
        return token

    def living(self, token_id: str) -> Token | None:
        token = self.by_id.get(token_id)
        if token is None:
            return None
        if token.expires_at is not None and token.expires_at <= self.clock():
            self._end(token)
            return None
        return token

    def aliases(self, token: Token) -> dict[str, str] | None:
        """None: the identity is gone or disabled, and the token good for nothing."""
        if not token.entity_id:
            return {}
        entity = self.entities.get(token.entity_id)
        return None if entity is None or entity.disabled else {self.mount_accessor: entity.alias}

    def by_accessor(self, accessor: str) -> Token | None:
        found = [token for token in self.by_id.values() if token.accessor == accessor and token.wraps is None]
        return self.living(found[0].id) if found else None

    def create(self, body: Json, *, path: str) -> Reply:
        """`create-orphan`, and `create` by an administrator: no role."""
        only(body, "policies", "no_default_policy", "ttl", "period", "meta", "renewable")
        policies = words(body, "policies")
        if not body.get("no_default_policy"):
            policies = sorted({*policies, "default"})
        token = self._new(policies, path, ttl_s=seconds(body.get("ttl", SYSTEM_MAX_S)))
        token.period_s = seconds(body.get("period", 0))
        if token.period_s:
            self._extend(token, token.period_s)
        token.renewable = body.get("renewable") is not False
        return Reply(auth=self.auth(token))

    def create_by_role(self, role_name: str, body: Json) -> Reply:
        only(body, "entity_alias", "meta", "ttl")
        role = self.roles.get(role_name)
        if role is None:
            raise Failure(400, f"unknown role {role_name}")
        if role["token_period"] or role["orphan"] is not True or role["token_type"] != "service":
            raise Unsupported(f"token role {role}")
        policies = words(role, "allowed_policies")
        if not policies:
            raise Unsupported("a role without allowed_policies gives its caller's own policies away")
        if not role["token_no_default_policy"]:
            policies = sorted({*policies, "default"})
        # Stored lower-cased, and so compared.
        alias = body.get("entity_alias")
        entity_id = ""
        if alias is not None:
            alias = text(body, "entity_alias")
            patterns = [pattern.lower() for pattern in words(role, "allowed_entity_aliases")]
            if not any(globbed(pattern, alias.lower()) for pattern in patterns):
                raise Failure(400, "invalid 'entity_alias' value")
            entity_id = self._entity(alias).id
        max_s = seconds(role["token_explicit_max_ttl"])
        ttl_s = min(seconds(body.get("ttl", SYSTEM_MAX_S)), max_s or SYSTEM_MAX_S)
        token = self._new(policies, f"auth/token/create/{role_name}", ttl_s=ttl_s)
        token.max_s, token.role, token.entity_id = max_s, role_name, entity_id
        meta = body.get("meta")
        token.meta = dict(meta) if isinstance(meta, dict) else None
        return Reply(auth=self.auth(token))

    def login(self, policies: list[str], *, path: str, ttl_s: int, period_s: int, meta: Json, name: str) -> Reply:
        token = self._new(policies, path, ttl_s=period_s or ttl_s or SYSTEM_MAX_S)
        token.period_s, token.meta, token.display_name = period_s, dict(meta), name
        return Reply(auth=self.auth(token))

    def set_role(self, name: str, body: Json) -> Reply:
        only(body, *_ROLE_FIELDS)
        default: dict[str, JsonValue] = {
            "allowed_policies": [],
            "allowed_entity_aliases": [],
            "orphan": False,
            "token_type": "default-service",
            "renewable": True,
            "token_no_default_policy": False,
            "token_explicit_max_ttl": 0,
            "token_period": 0,
            "token_bound_cidrs": [],
        }
        self.roles[name] = {**default, **self.roles.get(name, {}), **body, "name": name}
        return Reply()

    def get_role(self, name: str) -> Reply:
        if name not in self.roles:
            raise Failure(404)
        shown = dict(self.roles[name])
        cidrs = shown_cidrs(self.roles[name])
        if cidrs:
            shown["token_bound_cidrs"] = cidrs
        else:
            del shown["token_bound_cidrs"]
        return Reply(data=shown)

    def lookup(self, token: Token, *, by_accessor: bool) -> Reply:
        now = self.clock()
        data: dict[str, JsonValue] = {
            "accessor": token.accessor,
            "creation_time": int(token.made_at),
            "creation_ttl": token.ttl_s,
            "display_name": token.display_name,
            "entity_id": token.entity_id,
            "explicit_max_ttl": token.max_s if not token.role else 0,
            "id": "" if by_accessor else token.id,
            "meta": token.meta,
            "num_uses": 0,
            "orphan": token.orphan,
            "path": token.path,
            "policies": list(token.policies),
            "ttl": 0 if token.expires_at is None else max(int(token.expires_at - now), 0),
            "type": "service",
        }
        if token.expires_at is not None:
            data["renewable"] = token.renewable
        if token.role:
            data["role"] = token.role
        return Reply(data=data)

    def renew(self, token: Token, increment: JsonValue) -> Reply:
        if not token.renewable or token.expires_at is None:
            raise Failure(400, "invalid lease ID")
        if token.role and token.role not in self.roles:
            raise Failure(500, "internal error")
        # Only the role is asked for the maximum.
        max_s = seconds(self.roles[token.role]["token_explicit_max_ttl"]) if token.role else token.max_s
        asked_s = token.period_s or seconds(increment or 0) or token.ttl_s
        warnings: tuple[str, ...] = ()
        left_s = (token.made_at + max_s - self.clock()) if max_s else SYSTEM_MAX_S
        if left_s <= 0:
            raise Failure(400, "invalid request")
        if asked_s > left_s:
            warnings = (f'TTL of "{asked_s}s" exceeded the effective max_ttl of "{max_s}s"; TTL value is capped',)
        self._extend(token, min(asked_s, int(left_s)))
        auth = self.auth(token, show=False)
        auth["lease_duration"] = min(asked_s, int(left_s))
        return Reply(auth=auth, warnings=warnings)

    def revoke(self, token: Token) -> None:
        """The token is dead at once; what it leased goes a moment later. What is only now being leased stays."""
        self._end(token)

    def add_lease(self, token: Token, path: str, ttl_s: int, revoke: Callable[[], None]) -> Lease:
        """Nobody asks here whether the token still lives: that is the fault to be copied."""
        lease = Lease(f"{path}/{secrets.token_hex(12)}", self.clock() + ttl_s, revoke)
        self.leases[lease.id] = lease
        token.leases.append(lease)
        return lease

    def revoke_lease(self, lease_id: str) -> None:
        lease = self.leases.pop(lease_id, None)
        if lease is not None:
            lease.revoke()

    def wrap(self, body: Json, path: str, ttl_s: int) -> Json:
        token = self._new(["response-wrapping"], path, ttl_s=ttl_s)
        token.wraps = Wrapped(body, path, self.clock(), ttl_s)
        return {
            "token": token.id,
            "accessor": token.accessor,
            "ttl": ttl_s,
            "creation_time": stamp(self.clock()),
            "creation_path": path,
        }

    def unwrap(self, token: Token) -> Json:
        assert token.wraps is not None
        del self.by_id[token.id]
        return token.wraps.body

    def auth(self, token: Token, *, show: bool = True) -> dict[str, JsonValue]:
        ttl = 0 if token.expires_at is None else round(token.expires_at - self.clock())
        return {
            "client_token": token.id if show else "",
            "accessor": token.accessor,
            "policies": list(token.policies),
            "token_policies": list(token.policies),
            "metadata": token.meta,
            "lease_duration": ttl,
            "renewable": token.renewable,
            "entity_id": token.entity_id,
            "token_type": "service",
            "orphan": token.orphan,
            "mfa_requirement": None,
            "num_uses": 0,
        }

    def expire_leases(self) -> None:
        now = self.clock()
        for token in list(self.by_id.values()):
            self.living(token.id)
        for lease in [lease for lease in self.leases.values() if lease.expires_at <= now]:
            self.revoke_lease(lease.id)

    def close(self) -> None:
        for timer in self._late:
            timer.cancel()

    def _new(self, policies: list[str], path: str, *, ttl_s: int = 0) -> Token:
        now = self.clock()
        token = Token(
            f"s.{secrets.token_hex(12)}",
            secrets.token_hex(12),
            policies,
            path,
            now,
            now + ttl_s if ttl_s else None,
            ttl_s,
        )
        self.by_id[token.id] = token
        return token

    def _extend(self, token: Token, ttl_s: int) -> None:
        token.expires_at = self.clock() + ttl_s

    def _entity(self, alias: str) -> Entity:
        for entity in self.entities.values():
            if entity.alias.casefold() == alias.casefold():
                return entity
        entity = Entity(str(uuid.uuid4()), alias)
        self.entities[entity.id] = entity
        return entity

    def _end(self, token: Token) -> None:
        self.by_id.pop(token.id, None)
        going = list(token.leases)

        def drop() -> None:
            self._late.discard(timer)
            for lease in going:
                self.revoke_lease(lease.id)

        timer = asyncio.get_running_loop().call_later(DROP_AFTER_S, drop)
        self._late.add(timer)


def shown_cidrs(role: Json) -> list[JsonValue]:
    """One address is shown without its length."""
    return [cidr.removesuffix("/32") for cidr in words(role, "token_bound_cidrs")]


def stamp(at: float) -> str:
    return f"2026-01-01T00:00:00.{int(at * 1000) % 1000:03}Z"
