"""Sessions: answers. Source of the shapes: `anthropic.types.beta`, package 2.12."""

from typing import Literal, TypeAlias

from galley_server.wire.agent import SessionAgent
from galley_server.wire.base import Timestamp, Wire
from galley_server.wire.resource import FileResource
from galley_server.wire.usage import SessionUsage

Status: TypeAlias = Literal["rescheduling", "running", "idle", "terminated"]


class SessionStats(Wire):
    active_seconds: float
    duration_seconds: float


class Session(Wire):
    id: str
    type: Literal["session"] = "session"
    status: Status
    title: str | None
    agent: SessionAgent
    environment_id: str
    resources: tuple[FileResource, ...]
    vault_ids: tuple[str, ...] = ()
    metadata: dict[str, str]
    budget: None = None
    outcome_evaluations: tuple[()] = ()
    usage: SessionUsage
    stats: SessionStats
    deployment_id: None = None
    created_at: Timestamp
    updated_at: Timestamp
    archived_at: Timestamp | None
