"""`/healthz`: the proxy lives. `/readyz`: it would serve a request now, or why not."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from starlette.types import ASGIApp

from galley_vault_proxy.errors import RequestError
from galley_vault_proxy.http.answer import Json
from galley_vault_proxy.http.boundary import Operation, Paths
from galley_vault_proxy.http.call import Call

Check: TypeAlias = Callable[[], Awaitable[None]]
"""Raises a RequestError, with the reason, unless its part works."""

_PATIENCE_S: Final = 5.0


class HealthFace:
    def __init__(self, checks: Sequence[tuple[str, Check]]) -> None:
        self._checks = checks

    def paths(self) -> Paths:
        alive, ready = Operation(self._alive), Operation(self._ready)
        return {"/healthz": {"GET": alive, "HEAD": alive}, "/readyz": {"GET": ready, "HEAD": ready}}

    async def _alive(self, call: Call) -> ASGIApp:
        return Json(b'{"status":"ok"}')

    async def _ready(self, call: Call) -> ASGIApp:
        for part, check in self._checks:
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await check()
            except TimeoutError:
                return _not_ready(part, f"no answer within {_PATIENCE_S:g} s")
            except RequestError as error:
                return _not_ready(part, error.message)
        return Json(b'{"status":"ready"}')


def _not_ready(part: str, reason: str) -> Json:
    body = json.dumps({"status": "unavailable", "part": part, "reason": reason}, ensure_ascii=False)
    return Json(body.encode(), status=503)
