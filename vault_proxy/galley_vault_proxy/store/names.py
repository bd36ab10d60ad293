"""Which spelling of an id a store sees: one that no store can fold, glob or walk out of. No I/O here.

Vault looks identity aliases up lower-cased and takes any character in them, so two ids that differ only in case would
be one identity. Hence the injective, lower-case encoding: nothing is lost, and nothing in it means anything to Vault.
"""

import base64
import re
from typing import Final

from galley_vault_proxy.errors import InvalidRequest

VAULT_NAME: Final = re.compile(r"vlt-[a-z0-9]{1,64}")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_ROLE: Final = re.compile(r"[a-z0-9][a-z0-9_]{0,63}")
_HEADER: Final = re.compile(r"[!-~]{1,128}")
# 40 bytes are 64 characters of base32.
_MOST_BYTES: Final = 40


def vault_name(vault_id: str) -> str:
    """The vault's name in Vault: its alias, its path segment, the infix of its roles. Raises InvalidRequest."""
    return "vlt-" + _encoded(vault_id, "vault")


def credential_name(credential_id: str) -> str:
    """The credential's path segment. Raises InvalidRequest."""
    return "crd-" + _encoded(credential_id, "credential")


def id_of(name: str) -> str | None:
    """The id that became this name, or None when it is not such a name."""
    prefix, _, code = name.partition("-")
    if prefix not in {"vlt", "crd"} or not re.fullmatch(r"[a-z2-7]{1,64}", code):
        return None
    try:
        found = base64.b32decode(code.upper() + "=" * (-len(code) % 8)).decode()
    except ValueError:
        return None
    # Base32 has several spellings of one value; only the one we write is ours.
    return found if found and _code(found) == code else None


def role_name(vault: str, role: str) -> str:
    """The name of a dynamic engine's role for one vault. No `-` in the role: a glob must not reach the next vault's."""
    if not VAULT_NAME.fullmatch(vault) or not _ROLE.fullmatch(role):
        raise InvalidRequest(f"role {role[:80]!r}: use up to 64 of a-z, 0-9 and _")
    return f"galley-{vault}-{role}"


def check_path(path: str) -> str:
    """Return a path below `/v1/` whose segments all are plain names. HTTP libraries resolve `..` before they send."""
    for segment in path.split("/"):
        if not _SEGMENT.fullmatch(segment):
            raise InvalidRequest(f"{segment[:80]!r} cannot be part of a path in Vault")
    return path


def check_session(session_id: str) -> str:
    """Return a session id that fits a header."""
    if not _HEADER.fullmatch(session_id):
        raise InvalidRequest("session_id: use 1 to 128 printable ASCII characters without blanks")
    return session_id


def check_ids(vault_id: str, credential_id: str) -> None:
    """Refuse, in every store alike, what Vault's paths could not hold."""
    vault_name(vault_id)
    credential_name(credential_id)


def _encoded(value: str, kind: str) -> str:
    if not value or not value.isascii() or not value.isprintable() or len(value) > _MOST_BYTES:
        raise InvalidRequest(f"{kind} id {value[:80]!r}: use 1 to {_MOST_BYTES} printable ASCII characters")
    return _code(value)


def _code(value: str) -> str:
    return base64.b32encode(value.encode()).decode().rstrip("=").lower()
