"""One namespace of the test server: its mounts, policies and tokens, and who may do what."""

from collections.abc import Callable, Iterable
from typing import Final

from pydantic import JsonValue

from tests.vault_server import acl
from tests.vault_server.answers import (
    NO_WRAPPING,
    POLICY_DENIED,
    TOKEN_DENIED,
    Failure,
    Json,
    Reply,
    Unsupported,
    only,
    text,
    words,
)
from tests.vault_server.engines import Call, Database, Engine, Kv, Pki, Transit
from tests.vault_server.logins import AppRole, Jwt, Login
from tests.vault_server.tokens import Token, Tokens, stamp

_SUDO: Final = ("auth/token/accessors", "sys/config/auditing", "sys/audit", "sys/leases/revoke-prefix", "sys/seal")
# Vault's own `default` policy, as far as anything here could need it.
_DEFAULT: Final = """
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/renew-self" { capabilities = ["update"] }
path "sys/capabilities-self" { capabilities = ["update"] }
"""


class Namespace:
    """`parent`: the root namespace, whose root tokens are good here too; `others`: all namespaces there are."""

    def __init__(
        self,
        clock: Callable[[], float],
        others: Callable[[], Iterable["Namespace"]],
        parent: "Namespace | None" = None,
    ) -> None:
        self._others = others
        self._parent = parent
        self.tokens = Tokens(clock)
        self.policies: dict[str, str] = {"default": _DEFAULT}
        self.engines: dict[str, Engine] = {}
        self.logins: dict[str, Login] = {}
        self.audit_headers: dict[str, bool] = {}
        self.clock = clock

    def kv(self, mount: str = "secret") -> Kv:
        found = self.engines[mount]
        assert isinstance(found, Kv)
        return found

    def database(self, mount: str = "database") -> Database:
        found = self.engines[mount]
        assert isinstance(found, Database)
        return found

    def pki(self) -> Pki:
        found = self.engines["pki"]
        assert isinstance(found, Pki)
        return found

    async def answer(self, method: str, path: str, body: Json, token_id: str | None) -> Reply:
        """`method` is read, list, delete or update (which may turn out to be a create)."""
        login = self._login_at(path)
        if login is not None and path.endswith("/login") and method == "update":
            return login.log_in(body, path)
        if path == "sys/wrapping/lookup" and method == "update":
            return self._wrapping_lookup(body)
        if path == "sys/wrapping/unwrap" and method == "update":
            return self._unwrap(body, token_id)
        token = self._authenticated(token_id)
        self._authorised(token, method, path, body)
        return await self._handle(token, method, path, body)

    def _authenticated(self, token_id: str | None) -> Token:
        token = self.tokens.living(token_id) if token_id else None
        if token is None and token_id and self._parent is not None:
            token = self._parent.tokens.living(token_id)
            if token is not None and "root" not in token.policies:
                raise Failure(403, POLICY_DENIED)
        if token is None:
            raise Failure(403, TOKEN_DENIED)
        if token.wraps is not None:
            # Any use but its one spends it.
            del self.tokens.by_id[token.id]
            raise Failure(403, POLICY_DENIED)
        if self.tokens.aliases(token) is None:
            raise Failure(403, TOKEN_DENIED)
        return token

    def _authorised(self, token: Token, method: str, path: str, body: Json) -> None:
        if "root" in token.policies:
            return
        capability = self._capability(method, path)
        rules = self._rules(token)
        if not acl.allows(rules, path, capability, body):
            raise Failure(403, POLICY_DENIED)
        if path.startswith(_SUDO) and "sudo" not in acl.capabilities(rules, path):
            raise Failure(403, POLICY_DENIED)

    def _rules(self, token: Token) -> list[acl.Rule]:
        aliases = self.tokens.aliases(token) or {}
        texts = [self.policies[name] for name in token.policies if name in self.policies]
        return [rule for policy in texts for rule in acl.filled(acl.parsed(policy), aliases)]

    def _capability(self, method: str, path: str) -> str:
        if method != "update":
            return method
        mount = self._mount_of(path, self.engines)
        if mount is not None and not self.engines[mount].exists(path.removeprefix(mount + "/")):
            return "create"
        return "update"

    async def _handle(self, token: Token, method: str, path: str, body: Json) -> Reply:
        area, _, rest = path.partition("/")
        if area == "sys":
            return self._sys(token, method, rest, body)
        if area == "identity":
            return self._identity(method, rest, body)
        if path.startswith("auth/token/"):
            return self._token_store(token, method, path.removeprefix("auth/token/"), body)
        login = self._login_at(path)
        if login is not None:
            mount = self._mount_of(path.removeprefix("auth/"), self.logins)
            return login.handle(method, path.removeprefix(f"auth/{mount}/"), body)
        mount = self._mount_of(path, self.engines)
        if mount is None:
            raise Failure(404, f'no handler for route "{path}". route entry not found.')
        capability = self._capability(method, path)
        return await self.engines[mount].handle(Call(capability, path.removeprefix(mount + "/"), body, token, path))

    def _login_at(self, path: str) -> Login | None:
        if not path.startswith("auth/"):
            return None
        mount = self._mount_of(path.removeprefix("auth/"), self.logins)
        return None if mount is None else self.logins[mount]

    def _mount_of(self, path: str, mounts: dict[str, Engine] | dict[str, Login]) -> str | None:
        return next((mount for mount in mounts if path == mount or path.startswith(mount + "/")), None)

    def _sys(self, token: Token, method: str, path: str, body: Json) -> Reply:
        if self._parent is not None and path.startswith(("config/auditing", "audit")):
            raise Failure(400, "operation only available in root namespace")
        match path.split("/"), method:
            case ["mounts"], "read":
                return Reply(data={f"{name}/": self._mount(engine.kind) for name, engine in self.engines.items()})
            case ["mounts", *name], "update":
                return self._enable(path.removeprefix("mounts/"), body)
            case ["auth"], "read":
                found: dict[str, JsonValue] = {"token/": {"type": "token", "accessor": self.tokens.mount_accessor}}
                for name, login in self.logins.items():
                    found[f"{name}/"] = {"type": login.kind, "accessor": f"auth_{name}"}
                return Reply(data=found)
            case ["auth", name], "update":
                return self._enable_login(name, body)
            case ["policies", "acl", name], "read":
                if name not in self.policies:
                    raise Failure(404)
                return Reply(data={"name": name, "policy": self.policies[name]})
            case ["policies", "acl", name], "update":
                only(body, "policy")
                acl.parsed(text(body, "policy"))
                self.policies[name] = text(body, "policy")
                return Reply()
            case ["config", "auditing", "request-headers", name], "read":
                if name not in self.audit_headers:
                    raise Failure(400, "Could not find header in config")
                return Reply(data={name: {"hmac": self.audit_headers[name]}})
            case ["config", "auditing", "request-headers", name], "update":
                only(body, "hmac")
                self.audit_headers[name] = body.get("hmac") is True
                return Reply()
            case ["audit"], "read":
                return Reply(data={"main/": {"type": "file", "options": {"file_path": "audit.log"}}})
            case ["capabilities-self"], "update":
                return self._capabilities(token, words(body, "paths"))
            case ["leases", "revoke"], "update":
                only(body, "lease_id", "sync")
                if not body.get("lease_id"):
                    raise Failure(400, "lease_id must be specified")
                self.tokens.revoke_lease(text(body, "lease_id"))
                return Reply()
            case _:
                raise Unsupported(f"{method} sys/{path}")

    def _mount(self, kind: str) -> JsonValue:
        return {"type": kind, "options": {"version": "2"} if kind == "kv" else None}

    def _enable(self, name: str, body: Json) -> Reply:
        only(body, "type", "options")
        if name in self.engines:
            raise Failure(400, f"path is already in use at {name}/")
        match body.get("type"), body.get("options"):
            case "kv", {"version": "2"}:
                self.engines[name] = Kv(self.clock)
            case "transit", None:
                self.engines[name] = Transit()
            case "database", None:
                self.engines[name] = Database(self.tokens)
            case "pki", None:
                self.engines[name] = Pki(self.tokens)
            case kind, options:
                raise Unsupported(f"engine {kind} with {options}")
        return Reply()

    def _enable_login(self, name: str, body: Json) -> Reply:
        only(body, "type")
        if name in self.logins:
            raise Failure(400, f"path is already in use at {name}/")
        match text(body, "type"):
            case "approle":
                self.logins[name] = AppRole(self.tokens)
            case "jwt" | "kubernetes" as kind:
                self.logins[name] = Jwt(self.tokens, kind)
            case kind:
                raise Unsupported(f"login method {kind}")
        return Reply()

    def _capabilities(self, token: Token, paths: list[str]) -> Reply:
        found: dict[str, JsonValue] = {}
        for path in paths:
            allowed = ["root"] if "root" in token.policies else sorted(acl.capabilities(self._rules(token), path))
            found[path] = [*allowed] or ["deny"]
        return Reply(data=found, top_level=True)

    def _identity(self, method: str, path: str, body: Json) -> Reply:
        match path.split("/"), method:
            case ["entity", "id", entity_id], "read":
                entity = self.tokens.entities.get(entity_id)
                if entity is None:
                    raise Failure(404)
                aliases: list[JsonValue] = [{"name": entity.alias, "mount_accessor": self.tokens.mount_accessor}]
                return Reply(data={"id": entity_id, "aliases": aliases, "disabled": entity.disabled})
            case ["entity", "id", entity_id], "update":
                only(body, "disabled")
                self.tokens.entities[entity_id].disabled = body.get("disabled") is True
                return Reply()
            case ["entity", "id", entity_id], "delete":
                self.tokens.entities.pop(entity_id, None)
                return Reply()
            case _:
                raise Unsupported(f"{method} identity/{path}")

    def _token_store(self, token: Token, method: str, path: str, body: Json) -> Reply:
        match path.split("/"), method:
            case ["create-orphan"], "update":
                return self.tokens.create(body, path="auth/token/create-orphan")
            case ["create", role], "update":
                return self.tokens.create_by_role(role, body)
            case ["roles", role], "update":
                return self.tokens.set_role(role, body)
            case ["roles", role], "read":
                return self.tokens.get_role(role)
            case ["lookup-self"], "read":
                return self.tokens.lookup(token, by_accessor=False)
            case ["renew-self"], "update":
                only(body, "increment")
                return self.tokens.renew(token, body.get("increment"))
            case ["accessors"], "list":
                keys: list[JsonValue] = [each.accessor for each in self.tokens.by_id.values()]
                return Reply(data={"keys": keys})
            case [("lookup-accessor" | "renew-accessor" | "revoke-accessor") as what], "update":
                return self._by_accessor(what, body)
            case _:
                raise Unsupported(f"{method} auth/token/{path}")

    def _by_accessor(self, what: str, body: Json) -> Reply:
        only(body, "accessor", *(["increment"] if what == "renew-accessor" else []))
        accessor = body.get("accessor")
        if not isinstance(accessor, str) or not accessor:
            raise Failure(400, "1 error occurred:\n\t* missing accessor\n\n")
        token = self.tokens.by_accessor(accessor)
        if token is None:
            if any(other.tokens.by_accessor(accessor) is not None for other in self._others()):
                # And the token lives on.
                raise Failure(500, "1 error occurred:\n\t* cannot lookup token in different namespace\n\n")
            if what == "revoke-accessor":
                return Reply(warnings=("No token found with this accessor",))
            raise Failure(400, "1 error occurred:\n\t* invalid accessor\n\n")
        if what == "lookup-accessor":
            return self.tokens.lookup(token, by_accessor=True)
        if what == "renew-accessor":
            return self.tokens.renew(token, body.get("increment"))
        self.tokens.revoke(token)
        return Reply()

    def _wrapping_lookup(self, body: Json) -> Reply:
        only(body, "token")
        token = self.tokens.living(text(body, "token"))
        if token is None or token.wraps is None:
            raise Failure(400, NO_WRAPPING)
        wrapped = token.wraps
        return Reply(
            data={
                "creation_path": wrapped.creation_path,
                "creation_time": stamp(wrapped.made_at),
                "creation_ttl": wrapped.ttl_s,
            }
        )

    def _unwrap(self, body: Json, token_id: str | None) -> Reply:
        only(body)
        token = self.tokens.living(token_id or "")
        if token is None or token.wraps is None:
            raise Failure(400, NO_WRAPPING)
        inner = self.tokens.unwrap(token).get("data")
        assert isinstance(inner, dict)
        return Reply(data=inner)
