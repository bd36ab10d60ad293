"""Secret engines: KV version 2, transit, database, PKI."""

import asyncio
import base64
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import JsonValue

from tests.vault_server.answers import Failure, Json, Reply, Unsupported, only, seconds, text
from tests.vault_server.tokens import Token, Tokens, stamp

DEFAULT_LEASE_S: Final = 768 * 3600
_UPGRADING: Final = (
    "Upgrading from non-versioned to versioned data. This backend will be unavailable for a brief period and will "
    "resume service shortly."
)


@dataclass(frozen=True, slots=True)
class Call:
    """One request as an engine sees it: its path below the mount."""

    method: str
    path: str
    body: Json
    token: Token
    full_path: str


class Engine(Protocol):
    kind: str

    def exists(self, path: str) -> bool:
        """Whether a write to this path is an update. True where Vault makes no difference."""
        ...

    async def handle(self, call: Call) -> Reply: ...


@dataclass(slots=True)
class _Secret:
    versions: dict[int, Json | None] = field(default_factory=dict)
    last: int = 0


class Kv:
    kind = "kv"

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._secrets: dict[str, _Secret] = {}
        self._max_versions = 0
        # A new engine is not there at once.
        self._upgrading = 2
        # As a standby that answers reads itself: one version behind, until this many more reads.
        self.stale_reads = 0

    def exists(self, path: str) -> bool:
        area, _, name = path.partition("/")
        return area != "data" or name in self._secrets

    async def handle(self, call: Call) -> Reply:
        if self._upgrading:
            self._upgrading -= 1
            raise Failure(400, _UPGRADING)
        area, _, name = call.path.partition("/")
        match area, call.method:
            case "data", "read":
                return self._read(name)
            case "data", "create" | "update":
                return self._write(name, call.body)
            case "data", "delete":
                self._hide(name)
                return Reply()
            case "metadata", "list":
                return self._list(name)
            case "metadata", "delete":
                self._secrets.pop(name, None)
                return Reply()
            case "config", "update" if not name:
                only(call.body, "max_versions")
                self._max_versions = seconds(call.body["max_versions"])
                return Reply()
            case "config", "read" if not name:
                return Reply(
                    data={"cas_required": False, "delete_version_after": "0s", "max_versions": self._max_versions}
                )
            case _:
                raise Unsupported(f"{call.method} {call.full_path}")

    def _read(self, name: str) -> Reply:
        secret = self._secrets.get(name)
        if secret is None:
            raise Failure(404)
        number = secret.last
        if self.stale_reads and number - 1 in secret.versions:
            self.stale_reads -= 1
            number -= 1
        data = secret.versions.get(number)
        metadata = self._metadata(number, deleted=data is None)
        if data is None:
            raise DeletedVersion(metadata)
        return Reply(data={"data": dict(data), "metadata": metadata})

    def _write(self, name: str, body: Json) -> Reply:
        only(body, "data", "options")
        data, options = body.get("data"), body.get("options") or {}
        if not isinstance(data, dict) or not isinstance(options, dict):
            raise Failure(400, "no data provided")
        only(options, "cas")
        secret = self._secrets.get(name) or _Secret()
        if "cas" in options and options["cas"] != secret.last:
            raise Failure(400, "check-and-set parameter did not match the current version")
        self._secrets[name] = secret
        secret.last += 1
        secret.versions[secret.last] = data
        for number in sorted(secret.versions)[: -(self._max_versions or 10)]:
            del secret.versions[number]
        return Reply(data=self._metadata(secret.last, deleted=False))

    def _hide(self, name: str) -> None:
        secret = self._secrets.get(name)
        if secret is not None:
            secret.versions[secret.last] = None

    def _list(self, name: str) -> Reply:
        prefix = name + "/" if name else ""
        below = {path[len(prefix) :] for path in self._secrets if path.startswith(prefix)}
        keys: list[JsonValue] = [*sorted({path if "/" not in path else path.split("/")[0] + "/" for path in below})]
        if not keys:
            raise Failure(404)
        return Reply(data={"keys": keys})

    def _metadata(self, number: int, *, deleted: bool) -> dict[str, JsonValue]:
        now = stamp(self._clock())
        return {
            "created_time": now,
            "custom_metadata": None,
            "deletion_time": now if deleted else "",
            "destroyed": False,
            "version": number,
        }


class DeletedVersion(Exception):
    """404, but with a body."""

    def __init__(self, metadata: Json) -> None:
        super().__init__()
        self.reply = Reply(data={"data": None, "metadata": dict(metadata)})


class Transit:
    kind = "transit"

    def __init__(self) -> None:
        self._keys: dict[str, bytes] = {}

    def exists(self, path: str) -> bool:
        # Encrypting with a key that is not there makes it, for whoever may create.
        area, _, name = path.partition("/")
        return area != "encrypt" or name in self._keys

    async def handle(self, call: Call) -> Reply:
        area, _, name = call.path.partition("/")
        match area, call.method:
            case "keys", "update":
                only(call.body, "type")
                if text(call.body, "type") != "aes256-gcm96":
                    raise Unsupported(f"key type {call.body}")
                self._keys.setdefault(name, os.urandom(32))
                return Reply(data={"name": name, "type": "aes256-gcm96", "keys": {"1": 0}})
            case "keys", "read":
                if name not in self._keys:
                    raise Failure(404)
                return Reply(data={"name": name, "type": "aes256-gcm96", "keys": {"1": 0}, "exportable": False})
            case "encrypt", "update":
                return self._encrypt(self._key(name), call.body)
            case "decrypt", "update":
                return self._decrypt(self._key(name), call.body)
            case _:
                raise Unsupported(f"{call.method} {call.full_path}")

    def _key(self, name: str) -> bytes:
        if name not in self._keys:
            raise Failure(400, "encryption key not found")
        return self._keys[name]

    def _encrypt(self, key: bytes, body: Json) -> Reply:
        only(body, "plaintext", "associated_data")
        nonce = os.urandom(12)
        bound = base64.b64decode(text(body, "associated_data", ""))
        sealed = AESGCM(key).encrypt(nonce, base64.b64decode(text(body, "plaintext")), bound)
        return Reply(data={"ciphertext": "vault:v1:" + base64.b64encode(nonce + sealed).decode(), "key_version": 1})

    def _decrypt(self, key: bytes, body: Json) -> Reply:
        only(body, "ciphertext", "associated_data")
        sealed = text(body, "ciphertext", "")
        if not sealed:
            raise Failure(400, "missing ciphertext to decrypt")
        if not sealed.startswith("vault:v"):
            raise Failure(400, "invalid ciphertext: no prefix")
        version, _, encoded = sealed.removeprefix("vault:v").partition(":")
        if version != "1":
            raise Failure(400, "invalid ciphertext: version is too new")
        try:
            raw = base64.b64decode(encoded, validate=True)
            bound = base64.b64decode(text(body, "associated_data", ""))
            plaintext = AESGCM(key).decrypt(raw[:12], raw[12:], bound)
        except (ValueError, InvalidTag):
            raise Failure(400, "cipher: message authentication failed") from None
        return Reply(data={"plaintext": base64.b64encode(plaintext).decode()})


class Database:
    """Makes users in a set. `pause` holds the making of one, as a slow database does."""

    kind = "database"

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._configs: dict[str, Json] = {}
        self._roles: dict[str, Json] = {}
        self.users: set[str] = set()
        self.pause_s = 0.0
        self.hold: asyncio.Event | None = None
        self.making = 0

    def exists(self, path: str) -> bool:
        return True

    async def handle(self, call: Call) -> Reply:
        area, _, name = call.path.partition("/")
        match area, call.method:
            case "config", "update":
                self._configs[name] = call.body
                return Reply()
            case "roles", "update":
                only(call.body, "db_name", "creation_statements", "revocation_statements", "default_ttl", "max_ttl")
                self._roles[name] = call.body
                return Reply()
            case "roles", "read":
                if name not in self._roles:
                    raise Failure(404)
                return Reply(data=self._roles[name])
            case "creds", "read":
                return await self._creds(name, call)
            case _:
                raise Unsupported(f"{call.method} {call.full_path}")

    async def _creds(self, name: str, call: Call) -> Reply:
        role = self._roles.get(name)
        if role is None:
            raise Failure(400, f"unknown role: {name}")
        self.making += 1
        try:
            if self.hold is not None:
                await self.hold.wait()
            await asyncio.sleep(self.pause_s)
        finally:
            self.making -= 1
        user = f"v-token-{name[:8]}-{secrets.token_hex(10)}"
        self.users.add(user)
        ttl_s = seconds(role.get("default_ttl", DEFAULT_LEASE_S))
        lease = self._tokens.add_lease(call.token, call.full_path, ttl_s, lambda: self.users.discard(user))
        return Reply(
            data={"username": user, "password": secrets.token_hex(10)},
            lease_id=lease.id,
            lease_duration=ttl_s,
            renewable=True,
        )


class Pki:
    kind = "pki"

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._roles: dict[str, Json] = {}
        self.valid: set[str] = set()

    def exists(self, path: str) -> bool:
        return True

    async def handle(self, call: Call) -> Reply:
        area, _, name = call.path.partition("/")
        match area, call.method:
            case "root", "update" if name == "generate/internal":
                only(call.body, "common_name", "key_type", "key_bits")
                return Reply(data={"certificate": "-----BEGIN CERTIFICATE-----\nroot\n-----END CERTIFICATE-----"})
            case "roles", "update":
                only(call.body, "allow_any_name", "generate_lease", "key_type", "key_bits", "max_ttl")
                self._roles[name] = call.body
                return Reply(data=call.body)
            case "issue", "update":
                return self._issue(name, call)
            case _:
                raise Unsupported(f"{call.method} {call.full_path}")

    def _issue(self, name: str, call: Call) -> Reply:
        only(call.body, "common_name", "alt_names", "ip_sans", "uri_sans", "ttl", "format")
        role = self._roles.get(name)
        if role is None:
            raise Failure(400, f"unknown role: {name}")
        if not call.body.get("common_name"):
            raise Failure(400, "the common_name field is required")
        serial = ":".join(secrets.token_hex(1) for _ in range(20))
        self.valid.add(serial)
        ttl_s = seconds(role.get("max_ttl", DEFAULT_LEASE_S))
        data: dict[str, JsonValue] = {
            "ca_chain": ["-----BEGIN CERTIFICATE-----\nroot\n-----END CERTIFICATE-----"],
            "certificate": f"-----BEGIN CERTIFICATE-----\n{serial}\n-----END CERTIFICATE-----",
            "expiration": 0,
            "issuing_ca": "-----BEGIN CERTIFICATE-----\nroot\n-----END CERTIFICATE-----",
            "not_before": 0,
            "private_key": "-----BEGIN EC PRIVATE KEY-----\nnone\n-----END EC PRIVATE KEY-----",
            "private_key_type": "ec",
            "serial_number": serial,
        }
        if not role.get("generate_lease"):
            return Reply(data=data)
        lease = self._tokens.add_lease(call.token, call.full_path, ttl_s, lambda: self.valid.discard(serial))
        return Reply(data=data, lease_id=lease.id, lease_duration=ttl_s)
