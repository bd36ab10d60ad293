"""Authenticated encryption (AES-256-GCM) that binds a ciphertext to what it belongs to. No I/O here."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12


class NotAuthentic(Exception):
    """Wrong key, changed ciphertext, or bound to something else. Which of them cannot be known."""


class UnknownKey(Exception):
    """The key that sealed this is not among ours."""


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """Keys by id; `active` is the one to seal with. Does not print."""

    active: str
    by_id: Mapping[str, bytes]

    @classmethod
    def new(cls) -> Self:
        key_id = os.urandom(8).hex()
        return cls(key_id, {key_id: os.urandom(KEY_BYTES)})

    def with_active(self, other: "Keys") -> "Keys":
        """Seal with the other's active key from now on; everything can still be unsealed."""
        return Keys(other.active, {**self.by_id, **other.by_id})

    def only_active(self) -> "Keys":
        return Keys(self.active, {self.active: self.by_id[self.active]})

    def key(self, key_id: str) -> bytes:
        try:
            return self.by_id[key_id]
        except KeyError:
            raise UnknownKey(key_id) from None

    def __repr__(self) -> str:
        return f"Keys(active={self.active!r}, {len(self.by_id)} in all)"


def seal(key: bytes, plaintext: bytes, *bound: str) -> bytes:
    """Encrypt; only the same key and the same `bound` words, in this order, give it back."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, _associated(bound))


def unseal(key: bytes, sealed: bytes, *bound: str) -> bytes:
    """Raises NotAuthentic."""
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _associated(bound))
    except (InvalidTag, ValueError):
        raise NotAuthentic from None


def derived(secret: bytes, purpose: str) -> bytes:
    """A key from a secret that is already random."""
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=purpose.encode()).derive(secret)


def _associated(bound: tuple[str, ...]) -> bytes:
    # Lengths in front, so that ("ab", "c") and ("a", "bc") are not the same.
    words = [word.encode() for word in bound]
    return b"".join(len(word).to_bytes(4, "big") + word for word in words)
