"""`/v1/audit`: what was decided, for whom, and why."""

import json

from starlette.types import ASGIApp

from galley_vault_proxy.admin.shapes import AuditParams
from galley_vault_proxy.audit import Audit, AuditQuery
from galley_vault_proxy.http.answer import Json
from galley_vault_proxy.http.boundary import Operation, Paths
from galley_vault_proxy.http.call import Call
from galley_vault_proxy.http.query import text, whole


class AuditFace:
    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    def paths(self) -> Paths:
        takes = {"session_id": text, "grant_id": text, "decision": text, "after": text, "limit": whole}
        return {"/v1/audit": {"GET": Operation(self._list, takes)}}

    async def _list(self, call: Call) -> ASGIApp:
        asked = call.query(AuditParams)
        found = await self._audit.query(
            AuditQuery(asked.session_id, asked.grant_id, asked.decision, asked.after, asked.limit)
        )
        whole_page = {"data": found.data, "next_after": found.next_after, "has_more": found.has_more}
        return Json(json.dumps(whole_page, ensure_ascii=False, separators=(",", ":")).encode())
