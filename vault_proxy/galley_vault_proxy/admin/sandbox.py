"""What whoever makes sandboxes puts into them: placeholders, and the authority of the egress door."""

from starlette.types import ASGIApp

from galley_vault_proxy.admin.shapes import EgressShown, SessionEnvironment
from galley_vault_proxy.credentials.port import CredentialSource
from galley_vault_proxy.grant.registry import Registry
from galley_vault_proxy.http.answer import resource
from galley_vault_proxy.http.boundary import Operation, Paths
from galley_vault_proxy.http.call import Call


class SandboxFace:
    def __init__(
        self, registry: Registry, credentials: CredentialSource, *, egress_url: str | None, ca_pem: bytes
    ) -> None:
        self._registry = registry
        self._credentials = credentials
        self._egress = EgressShown(url=egress_url, ca_pem=ca_pem.decode())

    def paths(self) -> Paths:
        return {
            "/v1/egress": {"GET": Operation(self._show_egress)},
            "/v1/sessions/{session_id}/environment": {"GET": Operation(self._environment)},
        }

    async def _show_egress(self, call: Call) -> ASGIApp:
        return resource(self._egress)

    async def _environment(self, call: Call) -> ASGIApp:
        session = await self._registry.session(call.param("session_id"))
        found = await self._credentials.placeholders(session.id, session.vault_ids)
        return resource(SessionEnvironment(id=session.id, variables=found))
