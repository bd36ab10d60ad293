"""Ways to log in: AppRole, JWT, Kubernetes."""

import secrets
import uuid
from dataclasses import dataclass, field
from typing import Protocol

import jwt
from pydantic import JsonValue

from tests.vault_server.answers import Failure, Json, Reply, Unsupported, only, seconds, text, words
from tests.vault_server.tokens import Tokens, shown_cidrs

_LEEWAY_S = 150


class Login(Protocol):
    kind: str

    def log_in(self, body: Json, path: str) -> Reply: ...
    def handle(self, method: str, path: str, body: Json) -> Reply: ...


@dataclass(slots=True)
class _SecretId:
    uses: int
    expires_at: float | None


@dataclass(slots=True)
class _Role:
    settings: dict[str, JsonValue]
    role_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    secret_ids: dict[str, _SecretId] = field(default_factory=dict)


class AppRole:
    kind = "approle"

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._roles: dict[str, _Role] = {}

    def handle(self, method: str, path: str, body: Json) -> Reply:
        area, _, rest = path.partition("/")
        name, _, what = rest.partition("/")
        if area != "role":
            raise Unsupported(f"{method} {path}")
        if method == "update" and not what:
            return self._set(name, body)
        role = self._roles.get(name)
        if role is None:
            raise Failure(404)
        match what, method:
            case "", "read":
                return Reply(data={**role.settings, "token_bound_cidrs": shown_cidrs(role.settings)})
            case "role-id", "read":
                return Reply(data={"role_id": role.role_id})
            case "secret-id", "update":
                return self._make(role)
            case _:
                raise Unsupported(f"{method} {path}")

    def log_in(self, body: Json, path: str) -> Reply:
        only(body, "role_id", "secret_id")
        refused = Failure(400, "invalid role or secret ID")
        role = next((each for each in self._roles.values() if each.role_id == body.get("role_id")), None)
        secret_id = text(body, "secret_id")
        found = None if role is None else role.secret_ids.get(secret_id)
        if role is None or found is None or (found.expires_at or self._tokens.clock() + 1) <= self._tokens.clock():
            raise refused
        if found.uses == 1:
            del role.secret_ids[secret_id]
        elif found.uses:
            found.uses -= 1
        return _issued(self._tokens, role.settings, path, {"role_name": "galley"}, "approle")

    def _set(self, name: str, body: Json) -> Reply:
        only(body, *_TOKEN_FIELDS, "bind_secret_id", "secret_id_num_uses", "secret_id_ttl")
        role = self._roles.setdefault(name, _Role({**_TOKEN_DEFAULTS, "bind_secret_id": True}))
        role.settings.update(body)
        return Reply()

    def _make(self, role: _Role) -> Reply:
        secret_id = str(uuid.uuid4())
        ttl_s = seconds(role.settings.get("secret_id_ttl", 0))
        uses = seconds(role.settings.get("secret_id_num_uses", 0))
        role.secret_ids[secret_id] = _SecretId(uses, self._tokens.clock() + ttl_s if ttl_s else None)
        return Reply(
            data={
                "secret_id": secret_id,
                "secret_id_accessor": secrets.token_hex(8),
                "secret_id_num_uses": uses,
                "secret_id_ttl": ttl_s,
            }
        )


class Jwt:
    """`jwt` and `kubernetes` log in alike; here both check the signature with a key that they were given."""

    def __init__(self, tokens: Tokens, kind: str) -> None:
        self.kind = kind
        self._tokens = tokens
        self._keys: list[str] = []
        self._roles: dict[str, dict[str, JsonValue]] = {}

    def handle(self, method: str, path: str, body: Json) -> Reply:
        area, _, name = path.partition("/")
        if (area, method) == ("config", "update") and not name:
            only(body, "jwt_validation_pubkeys", "kubernetes_host", "pem_keys")
            self._keys = words(body, "pem_keys" if self.kind == "kubernetes" else "jwt_validation_pubkeys")
            return Reply()
        if (area, method) == ("role", "update"):
            only(body, *_TOKEN_FIELDS, "role_type", "user_claim", "bound_audiences", *_SERVICE_ACCOUNTS)
            self._roles[name] = {**_TOKEN_DEFAULTS, **body}
            return Reply()
        raise Unsupported(f"{method} {path}")

    def log_in(self, body: Json, path: str) -> Reply:
        only(body, "role", "jwt")
        role = self._roles.get(text(body, "role"))
        if role is None:
            raise Failure(400, f'role "{text(body, "role")}" could not be found')
        for key in self._keys:
            try:
                claims = jwt.decode(
                    text(body, "jwt"), key, algorithms=["ES256"], audience=words(role, "bound_audiences") or None
                )
            except jwt.PyJWTError:
                continue
            # Without these it is taken to be valid for the last moments before its end.
            if claims.get("iat", claims.get("nbf", claims["exp"] - _LEEWAY_S)) > self._tokens.clock() + _LEEWAY_S:
                raise Failure(400, "error validating token: invalid not before (nbf) claim: token not yet valid")
            return _issued(self._tokens, role, path, {"role": text(body, "role")}, f"{self.kind}-{claims['sub']}")
        raise Failure(400, "error validating token: no known key successfully validated the token signature")


_SERVICE_ACCOUNTS = ("bound_service_account_names", "bound_service_account_namespaces")
_TOKEN_FIELDS = (
    "token_policies",
    "token_no_default_policy",
    "token_type",
    "token_period",
    "token_ttl",
    "token_max_ttl",
    "token_bound_cidrs",
)
_TOKEN_DEFAULTS: dict[str, JsonValue] = {
    "token_policies": [],
    "token_no_default_policy": False,
    "token_type": "default",
    "token_period": 0,
    "token_ttl": 0,
    "token_max_ttl": 0,
    "token_bound_cidrs": [],
}


def _issued(tokens: Tokens, role: Json, path: str, meta: Json, name: str) -> Reply:
    policies = words(role, "token_policies")
    if not role["token_no_default_policy"]:
        policies = sorted({*policies, "default"})
    reply = tokens.login(
        policies,
        path=path,
        ttl_s=seconds(role["token_ttl"]),
        period_s=seconds(role["token_period"]),
        meta=meta,
        name=name,
    )
    assert reply.auth is not None
    made = tokens.living(text(reply.auth, "client_token"))
    assert made is not None
    made.max_s = seconds(role["token_max_ttl"])
    return reply
