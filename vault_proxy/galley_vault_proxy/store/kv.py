"""What is asked of Vault's KV v2, transit and wrapping, and what the answers mean. No I/O here."""

import base64
import re
from collections.abc import Mapping
from typing import Final

from pydantic import JsonValue

from galley_vault_proxy.secret import Secret
from galley_vault_proxy.settings import VaultMounts
from galley_vault_proxy.store.names import credential_name, id_of, vault_name
from galley_vault_proxy.store.port import Material, SecretRef
from galley_vault_proxy.store.vault_adapter import Answer, Json, Request, whole_of
from galley_vault_proxy.store.vault_fault import Down

_TOKEN: Final = re.compile(r"[A-Za-z0-9._-]{1,1024}")

_HEALTH: Final = {
    429: "this node of Vault is a standby: point VAULT_ADDR at the active one",
    472: "this node of Vault is a disaster-recovery standby: point VAULT_ADDR at the primary",
    473: "this node of Vault is a performance standby: point VAULT_ADDR at the active one",
    501: "Vault is not initialised",
    503: "Vault is sealed",
}
HEALTH: Final = Request(
    "get", "sys/health", "ask for Vault's health", namespaced=False, answers=frozenset({200, *_HEALTH})
)


def unwell(health: Answer) -> str | None:
    """What keeps it from serving, as its health check tells. None does not mean that it serves."""
    return _HEALTH.get(health.status)


def read(mounts: VaultMounts, ref: SecretRef) -> Request:
    return Request("get", _path(mounts, "data", ref), "read a secret", again=True)


def write(mounts: VaultMounts, ref: SecretRef, fields: Mapping[str, Secret], expected: int | None) -> Request:
    # Field by field, so that an operator can rotate a secret with Vault's own command.
    body: dict[str, JsonValue] = {"data": {name: value.reveal() for name, value in fields.items()}}
    if expected is not None:
        body["options"] = {"cas": expected}
    return Request("post", _path(mounts, "data", ref), "write a secret", body)


def purge(mounts: VaultMounts, ref: SecretRef) -> Request:
    # Deleting the metadata removes every version at once; deleting data only hides the newest.
    return Request("delete", _path(mounts, "metadata", ref), "purge a secret", again=True)


def names(mounts: VaultMounts, vault_id: str) -> Request:
    path = f"{mounts.kv}/metadata/{mounts.kv_prefix}/{vault_name(vault_id)}"
    return Request("list", path, "list a vault's secrets", again=True)


def credential_ids(answer: Answer) -> list[str]:
    """The credentials among the names listed. Raises Down when one is not ours."""
    keys = answer.part("data").get("keys")
    found = [id_of(key) if isinstance(key, str) else None for key in keys] if isinstance(keys, list) else [None]
    known = [credential_id for credential_id in found if credential_id is not None]
    if len(known) != len(found):
        raise Down("there is something in the vault's path that the proxy did not write", done=False, passing=False)
    return known


def material(answer: Answer) -> Material:
    """Raises Down when it is not what `write` wrote."""
    data = answer.part("data")
    inner, metadata = data.get("data"), data.get("metadata")
    if isinstance(inner, dict) and isinstance(metadata, dict):
        fields = {name: Secret(value) for name, value in inner.items() if isinstance(value, str)}
        if len(fields) == len(inner):
            return Material(fields, whole_of(metadata, "version"))
    raise Down("the secret in Vault has a field that is no text", done=False, passing=False, ill=False)


def written(answer: Answer) -> int:
    return whole_of(answer.part("data"), "version")


def encrypt(mounts: VaultMounts, vault_id: str, plaintext: bytes) -> Request:
    body: Json = {"plaintext": _base64(plaintext), "associated_data": _base64(vault_id.encode())}
    return Request("post", f"{mounts.transit}/encrypt/{mounts.transit_key}", "seal a value", body, again=True)


def decrypt(mounts: VaultMounts, vault_id: str, sealed: str) -> Request:
    body: Json = {"ciphertext": sealed, "associated_data": _base64(vault_id.encode())}
    return Request("post", f"{mounts.transit}/decrypt/{mounts.transit_key}", "unseal a value", body, again=True)


def is_token(token: Secret) -> bool:
    """Whether it could be one of Vault's: it goes into a header."""
    return _TOKEN.fullmatch(token.reveal()) is not None


def wrapping_lookup(token: Secret) -> Request:
    return Request("post", "sys/wrapping/lookup", "look a wrapping token up", {"token": token.reveal()}, again=True)


def unwrapping(token: Secret) -> Request:
    return Request("post", "sys/wrapping/unwrap", "unwrap a hand-over", token=token)


def _path(mounts: VaultMounts, kind: str, ref: SecretRef) -> str:
    vault, credential = vault_name(ref.vault_id), credential_name(ref.credential_id)
    return f"{mounts.kv}/{kind}/{mounts.kv_prefix}/{vault}/{credential}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
