"""The base of every wire model: frozen, closed, and printed the way the official API prints."""

from datetime import UTC, datetime
from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, JsonValue, PlainSerializer

JSON: TypeAlias = JsonValue
"""Any JSON value. Only where the official shape itself is open: tool inputs and raw model blocks."""


class Wire(BaseModel):
    """A shape of the official API. Unknown fields are refused: a typo in a request is an error, not a surprise."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), ser_json_inf_nan="null")


def rfc3339(at: datetime) -> str:
    """Milliseconds and a Z, as every official timestamp has."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Timestamp: TypeAlias = Annotated[datetime, PlainSerializer(rfc3339, return_type=str, when_used="json")]
