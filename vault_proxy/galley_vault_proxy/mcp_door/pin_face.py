"""`/v1/mcp_pins`: a person looks at the pinned definitions of a server's tools, and lets new ones be pinned."""

import json
from typing import Annotated

from pydantic import StringConstraints
from starlette.types import ASGIApp

from galley_vault_proxy.audit import Audit, AuditLine
from galley_vault_proxy.http.answer import Json
from galley_vault_proxy.http.boundary import Operation, Paths
from galley_vault_proxy.http.call import Call
from galley_vault_proxy.http.query import text
from galley_vault_proxy.http.validation import Strict
from galley_vault_proxy.mcp_door.pins import INSTRUCTIONS, PinPlace, PinStore

_SHOWN_INSTRUCTIONS = "(instructions)"


class PinParams(Strict):
    """The query of both calls. Without a tool: all of the server."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=2048)]
    credential_id: Annotated[str, StringConstraints(max_length=128)] = ""
    tool: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None


class PinFace:
    """A face of the API behind the service key."""

    def __init__(self, pins: PinStore, audit: Audit) -> None:
        self._pins = pins
        self._audit = audit

    def paths(self) -> Paths:
        listed = Operation(self._list, {"url": text, "credential_id": text})
        forgotten = Operation(self._forget, {"url": text, "tool": text})
        return {"/v1/mcp_pins": {"GET": listed, "DELETE": forgotten}}

    async def _list(self, call: Call) -> ASGIApp:
        asked = call.query(PinParams)
        pins = await self._pins.load(PinPlace(asked.url, asked.credential_id))
        data = [
            {
                "type": "mcp_pin",
                "tool": name if name != INSTRUCTIONS else _SHOWN_INSTRUCTIONS,
                "digest": found.digest,
                "definition": found.value,
            }
            for name, found in sorted(pins.items())
        ]
        return Json(json.dumps({"data": data}, ensure_ascii=False, separators=(",", ":")).encode())

    async def _forget(self, call: Call) -> ASGIApp:
        """What is listed next is pinned anew: so one looks at the server first, and forgets then."""
        await call.nothing()
        asked = call.query(PinParams)
        name = INSTRUCTIONS if asked.tool == _SHOWN_INSTRUCTIONS else asked.tool
        # The line comes first: what cannot be recorded is not done.
        self._audit.record(
            AuditLine(
                "mcp.pin", "allow", reason="definition_forgotten", who="service", server=asked.url, tool=asked.tool
            )
        )
        count = await self._pins.forget(asked.url, name)
        return Json(json.dumps({"type": "mcp_pins_forgotten", "count": count}).encode())
