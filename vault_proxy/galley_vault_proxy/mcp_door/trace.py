"""What the audit will say of one request to the door."""

from dataclasses import dataclass

from galley_vault_proxy.audit import Action, AuditLine, Verdict
from galley_vault_proxy.grant.token import Grant
from galley_vault_proxy.mcp_door.catalogue import PinNews
from galley_vault_proxy.mcp_door.pins import INSTRUCTIONS
from galley_vault_proxy.mcp_door.screen import Screen


@dataclass(slots=True)
class Trace:
    server: str
    began: float
    action: Action = "mcp.connect"
    grant: Grant | None = None
    event_id: str | None = None
    tool: str | None = None
    method: str | None = None
    decision: Verdict = "allow"
    reason: str | None = None
    screen: Screen | None = None

    def deny(self, reason: str) -> None:
        self.decision, self.reason = "deny", reason

    def line(self, *, size: int | None, now: float) -> AuditLine:
        """The line of the whole exchange. Without a size: that it began."""
        injection = self.screen.injection if self.screen is not None else None
        return AuditLine(
            self.action,
            self.decision,
            reason=self.reason,
            who="nobody" if self.grant is None else "grant",
            session_id=self.grant.session_id if self.grant else None,
            grant_id=self.grant.id if self.grant else None,
            thread_id=self.grant.thread_id if self.grant else None,
            event_id=self.event_id,
            server=self.server,
            tool=self.tool,
            method=self.method,
            credential_id=injection.credential_id if injection else None,
            credential_version=injection.version if injection else None,
            bytes=size,
            duration_ms=None if size is None else round((now - self.began) * 1000, 3),
        )

    def pin_line(self, news: PinNews) -> AuditLine:
        return AuditLine(
            "mcp.pin",
            "deny" if news.held_back else "allow",
            reason=news.reason,
            who="proxy",
            session_id=self.grant.session_id if self.grant else None,
            grant_id=self.grant.id if self.grant else None,
            server=self.server,
            tool=news.tool if news.tool != INSTRUCTIONS else "(instructions)",
        )
