"""Previews of one model request: `event_start` and `event_delta` for whoever listens now. Never stored."""

import json
from collections.abc import Mapping
from typing import Literal, TypeAlias

from galley_server.brain.answer import EventIds
from galley_server.log.log import Log
from galley_server.log.row import Preview

PreviewType: TypeAlias = Literal["agent.message", "agent.thinking"]


class Previews:
    """Publishes what streams by. Thinking shows only that it began: its text is nobody's to see."""

    def __init__(self, log: Log, session_id: str, ids: EventIds) -> None:
        self._log = log
        self._session_id = session_id
        self._ids = ids
        self._begun: set[str] = set()

    def thinking(self) -> None:
        self._begin(self._ids.thinking, "agent.thinking")

    def text(self, index: int, text: str) -> None:
        if not text:
            return
        self._begin(self._ids.message, "agent.message")
        if self._log.wants_previews(self._session_id):
            delta = {"type": "content_delta", "index": index, "content": {"type": "text", "text": text}}
            body = {"type": "event_delta", "event_id": self._ids.message, "delta": delta}
            self._publish(self._ids.message, "agent.message", first=False, body=body)

    def _begin(self, event_id: str, event_type: PreviewType) -> None:
        if event_id not in self._begun:
            self._begun.add(event_id)
            body = {"type": "event_start", "event": {"type": event_type, "id": event_id}}
            self._publish(event_id, event_type, first=True, body=body)

    def _publish(self, event_id: str, event_type: PreviewType, *, first: bool, body: Mapping[str, object]) -> None:
        data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        self._log.publish(self._session_id, Preview(event_id, event_type, first, data))
