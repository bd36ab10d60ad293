"""Answers in Vault's shape."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from pydantic import JsonValue

Json = Mapping[str, JsonValue]

POLICY_DENIED: Final = "1 error occurred:\n\t* permission denied\n\n"
TOKEN_DENIED: Final = "permission denied"
NO_WRAPPING: Final = "wrapping token is not valid or does not exist"


class Failure(Exception):
    """An answer of Vault's that says no."""

    def __init__(self, status: int, *errors: str) -> None:
        super().__init__(status, errors)
        self.status = status
        self.errors = errors


class Unsupported(Exception):
    """Nobody has compared this with a real server: the test that asks it is wrong, or this server is to be extended."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a handler gives back. `None` everywhere: 204."""

    data: Json | None = None
    auth: Json | None = None
    wrap_info: Json | None = None
    warnings: tuple[str, ...] = ()
    lease_id: str = ""
    lease_duration: int = 0
    renewable: bool = False
    top_level: bool = False

    def body(self) -> dict[str, JsonValue] | None:
        if self.data is None and self.auth is None and self.wrap_info is None and not self.warnings:
            return None
        copied = self.data if self.top_level and self.data is not None else {}
        return {
            **copied,
            "request_id": str(uuid.uuid4()),
            "lease_id": self.lease_id,
            "renewable": self.renewable,
            "lease_duration": self.lease_duration,
            "data": None if self.data is None else dict(self.data),
            "wrap_info": None if self.wrap_info is None else dict(self.wrap_info),
            "warnings": list(self.warnings) or None,
            "auth": None if self.auth is None else dict(self.auth),
        }

    def wrapped(self, info: Json) -> "Reply":
        return replace(Reply(), wrap_info=info)


def only(body: Json, *known: str) -> None:
    """Refuse what this server does not know."""
    odd = body.keys() - set(known)
    if odd:
        raise Unsupported(f"fields {sorted(odd)}")


def text(body: Json, name: str, default: str | None = None) -> str:
    value = body.get(name, default)
    if not isinstance(value, str):
        raise Unsupported(f"{name} is {value!r}")
    return value


def words(body: Json, name: str) -> list[str]:
    value = body.get(name) or []
    if isinstance(value, str):
        return [word for word in value.split(",") if word]
    if not isinstance(value, list):
        raise Unsupported(f"{name} is {value!r}")
    return [str(word) for word in value]


def seconds(value: JsonValue) -> int:
    """A duration as Vault takes it: a number, or one with a unit."""
    if isinstance(value, int):
        return value
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    if isinstance(value, str) and value:
        if value.isdigit():
            return int(value)
        if value[:-1].isdigit() and value[-1] in units:
            return int(value[:-1]) * units[value[-1]]
    raise Unsupported(f"duration {value!r}")
