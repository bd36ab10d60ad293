"""Sessions: made from an agent and an environment, changed, listed, archived, deleted."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Final, TypeAlias

import anyio

from galley_server.brain.drafts import event_draft, internal_draft, running
from galley_server.errors import AppendConflict, Conflict, InvalidRequest, NotFound
from galley_server.ids import new_id
from galley_server.log import internal
from galley_server.log.instant import from_micros, to_micros
from galley_server.log.log import Log
from galley_server.log.row import Draft, Row
from galley_server.log.state import SessionState
from galley_server.log.store import CreatedRange, Summaries, SummaryColumns, SummaryPosition, SummaryQuery
from galley_server.log.summary import Summary, summarise
from galley_server.runtime import cursor, recipe
from galley_server.runtime.agents import Agents
from galley_server.runtime.attachments import check_attachments
from galley_server.runtime.clock import Clock, first_shown_as, last_shown_as
from galley_server.runtime.environments import Environments
from galley_server.runtime.event_drafts import client_drafts
from galley_server.runtime.files import Files
from galley_server.runtime.idempotency import Idempotency, Once, remembered, to_json
from galley_server.runtime.ports import Releaser, Vaults
from galley_server.runtime.session_view import SessionViews, show_session
from galley_server.runtime.turnstile import Turnstile
from galley_server.wire import events as ev
from galley_server.wire.agent import SessionAgent
from galley_server.wire.agent_request import AgentWithOverrides
from galley_server.wire.environment import Networking
from galley_server.wire.page import DeletedSession, SessionPage
from galley_server.wire.query import SessionQuery
from galley_server.wire.resource import FileResource
from galley_server.wire.session import Session
from galley_server.wire.session_request import SessionCreate, SessionUpdate, mount_path

Change: TypeAlias = Callable[[Summary, SessionAgent], list[Draft]]
"""What to append to a session as it is now, nothing if it is so already. Raises if it must not be."""

_RETRIES: Final = 16


class Sessions:
    def __init__(
        self,
        log: Log,
        summaries: Summaries[Summary],
        once: Once,
        *,
        agents: Agents,
        environments: Environments,
        files: Files,
        hands: Releaser,
        vaults: Vaults,
        clock: Clock,
    ) -> None:
        self._log = log
        self._summaries = summaries
        self._once = once
        self._agents = agents
        self._environments = environments
        self._files = files
        self._hands = hands
        self._vaults = vaults
        self._clock = clock
        self._views = SessionViews(log)
        self._turnstile = Turnstile()

    async def create(self, request: SessionCreate, *, once: Idempotency | None = None) -> Session:
        """Make a session; with initial events it is running from its first moment. All of it happens, or nothing."""

        async def effect() -> Session:
            agent = await self._agent(request)
            networking = await self._networking(request.environment_id)
            await self._vaults.check(request.vault_ids)
            await check_attachments(self._files, request.initial_events, "initial_events")
            session_id = new_id("sesn")
            try:
                resources = await self._copies(session_id, request)
                return await self._begin(session_id, request, agent, networking, resources, once)
            except BaseException:
                if request.resources:
                    with anyio.CancelScope(shield=True):
                        await self._files.forget_session(session_id, unless_it_exists=True)
                raise

        return await self._once.run(once, effect, _again)

    async def retrieve(self, session_id: str) -> Session:
        """Raises NotFound."""
        return await self._show(session_id, await self._summaries.summary(session_id))

    async def update(self, session_id: str, request: SessionUpdate, *, once: Idempotency | None = None) -> Session:
        """Change what is given. A change of the agent needs an idle session and holds from the next turn."""

        def change(summary: Summary, agent: SessionAgent) -> list[Draft]:
            return changes(summary, agent, request)

        session = await self._once.run(once, lambda: self._amend(session_id, change, once), _again)
        if request.agent is not None:
            # What an agent may not use any more, its sandbox may not either, and that has a grant already.
            await self._vaults.changed(session_id)
        return session

    async def archive(self, session_id: str, *, once: Idempotency | None = None) -> Session:
        """End the session for good; its events stay to be read. It must not be running."""
        session = await self._once.run(once, lambda: self._amend(session_id, archival, once), _again)
        await self._hands.release(session_id)
        return session

    async def delete(self, session_id: str, *, caller: str = "api") -> DeletedSession:
        """Remove the session with its events, files and sandbox. It must not be running. Open streams end."""
        await self._log.delete(session_id, caller=caller, guard=_may_be_deleted)
        await self._files.forget_session(session_id)
        await self._hands.release(session_id)
        return DeletedSession(id=session_id)

    async def list(self, query: SessionQuery) -> SessionPage[Session]:
        wanted = _summary_query(query)
        if query.deployment_id is not None or query.memory_store_id is not None:
            return SessionPage(())  # no session has either
        found = await self._summaries.summaries(wanted)
        sessions = [await self._show(item.session_id, item.summary) for item in found.items]
        return SessionPage(
            tuple(sessions),
            _page_cursor(query, "after", found.next),
            _page_cursor(query, "before", found.previous),
        )

    async def _amend(self, session_id: str, change: Change, once: Idempotency | None) -> Session:
        """Append what `change` says, decided on the very state it is appended to."""
        async with self._turnstile.at(session_id):
            for _ in range(_RETRIES):
                summary = await self._summaries.summary(session_id)
                before = await self._show(session_id, summary)
                drafts = change(summary, before.agent)
                if not drafts:
                    await self._once.note(once, to_json(before), at=self._clock())
                    return before
                answer = self._answer(session_id, summary, before.agent, before.resources)
                kept = remembered(once, answer)
                with suppress(AppendConflict):
                    return answer(await self._log.append(session_id, drafts, expected=summary.seq, remember=kept))
        raise Conflict(f"{session_id} is changing too fast to be changed; try again")

    def _answer(
        self, session_id: str, before: Summary | None, agent: SessionAgent, resources: tuple[FileResource, ...]
    ) -> Callable[[Sequence[Row]], Session]:
        """Return how to tell, from the rows of a change, what the session has become.

        It tells the same each time it is asked: what is remembered in the transaction is what the first caller gets.
        """
        told: Session | None = None

        def show(rows: Sequence[Row]) -> Session:
            nonlocal told
            if told is None:
                told = show_session(session_id, *_fold(before, agent, rows), resources, now=self._now(rows))
            return told

        return show

    async def _begin(
        self,
        session_id: str,
        request: SessionCreate,
        agent: SessionAgent,
        networking: Networking | None,
        resources: tuple[FileResource, ...],
        once: Idempotency | None,
    ) -> Session:
        thread_id = new_id("sthr")
        created = internal.SessionCreated(
            agent=agent,
            environment_id=request.environment_id,
            thread_id=thread_id,
            title=request.title,
            metadata=request.metadata,
            resources=resources,
            vault_ids=request.vault_ids,
            networking=networking,
        )
        drafts = [internal_draft(created), *await client_drafts(request.initial_events)]
        if request.initial_events:
            drafts += running(SessionState(thread_id=thread_id), agent)
        answer = self._answer(session_id, None, agent, resources)
        kept = remembered(once, answer)
        return answer(await self._log.append(session_id, drafts, expected=0, remember=kept))

    def _now(self, rows: Sequence[Row]) -> datetime:
        return max(self._clock(), rows[-1].at)

    async def _show(self, session_id: str, summary: Summary) -> Session:
        return await self._views.show(session_id, summary, now=self._clock())

    async def _agent(self, request: SessionCreate) -> SessionAgent:
        """Resolve any of the three forms in which an agent is named."""
        reference = request.agent
        version = None if isinstance(reference, str) else reference.version
        agent_id = reference if isinstance(reference, str) else reference.id
        try:
            agent = await self._agents.retrieve(agent_id, version)
        except NotFound as error:
            raise NotFound(f"agent: {error.message}") from None
        if agent.archived_at is not None:
            raise InvalidRequest(f"agent: {agent_id} is archived; no new session can be made from it")
        snapshot = recipe.snapshot(agent)
        return recipe.overridden(snapshot, reference) if isinstance(reference, AgentWithOverrides) else snapshot

    async def _networking(self, environment_id: str) -> Networking | None:
        """What the environment allows, if there is a way to it at all."""
        try:
            environment = await self._environments.retrieve(environment_id)
        except NotFound as error:
            raise NotFound(f"environment_id: {error.message}", error_code="environment_not_found") from None
        if environment.archived_at is not None:
            raise InvalidRequest(
                f"environment_id: {environment_id} is archived; no new session can be made from it",
                error_code="environment_archived",
            )
        return environment.config.networking if self._vaults.networked else None

    async def _copies(self, session_id: str, request: SessionCreate) -> tuple[FileResource, ...]:
        """The session gets files of its own, so that it does not change or end with the ones it was given."""
        wanted = request.resources
        if not wanted:
            return ()
        copies = await self._files.copy_into(session_id, [one.file_id for one in wanted], field="resources")
        return tuple(
            FileResource(
                id=new_id("sesrsc"),
                file_id=copy.id,
                mount_path=mount_path(one.mount_path, one.file_id),
                created_at=copy.created_at,
                updated_at=copy.created_at,
            )
            for one, copy in zip(wanted, copies, strict=True)
        )


def _fold(summary: Summary | None, agent: SessionAgent, rows: Sequence[Row]) -> tuple[Summary, SessionAgent]:
    for row in rows:
        summary = summarise(summary, row)
        if row.type == "internal.session_changed":
            agent = internal.SessionChanged.model_validate_json(row.body).agent or agent
    assert summary is not None, "an append has at least one row"
    return summary, agent


def changes(summary: Summary, agent: SessionAgent, request: SessionUpdate) -> list[Draft]:
    """The rows of an update, none if it changes nothing. Pure but for the ids."""
    if summary.archived_at is not None or summary.status == "terminated":
        raise InvalidRequest("the session is archived or terminated and cannot be changed")
    given: dict[str, object] = {}
    if "title" in request.model_fields_set and request.title != summary.title:
        given["title"] = request.title
    if "metadata" in request.model_fields_set:
        bag = {} if request.metadata is None else recipe.patched(summary.metadata, request.metadata)
        if bag != summary.metadata:
            given["metadata"] = bag
    if request.agent is not None:
        if summary.shown_status != "idle":
            raise InvalidRequest(
                f"agent: the session is {summary.shown_status}; its tools and servers can change only while it is idle"
            )
        changed = recipe.reequipped(agent, request.agent)
        if changed != agent:
            given["agent"] = changed
    if not given:
        return []
    shown = {name: value for name, value in given.items() if value != {}}
    return [
        internal_draft(internal.SessionChanged.model_validate(given)),
        event_draft(ev.SessionUpdated.model_validate({"id": new_id("sevt"), **shown})),
    ]


def archival(summary: Summary, agent: SessionAgent) -> list[Draft]:
    """The rows that archive a session, none if it is archived."""
    if summary.archived_at is not None:
        return []
    if summary.shown_status in ("running", "rescheduling"):
        raise InvalidRequest(
            f"cannot archive while {summary.shown_status}; interrupt the session and wait until it is idle"
        )
    drafts = [internal_draft(internal.Archived())]
    if summary.status != "terminated":
        thread = ev.ThreadTerminated(id=new_id("sevt"), session_thread_id=summary.thread_id, agent_name=agent.name)
        drafts += [event_draft(thread), event_draft(ev.StatusTerminated(id=new_id("sevt")))]
    return drafts


def _may_be_deleted(session: SummaryColumns) -> None:
    if session.status in ("running", "rescheduling"):
        raise InvalidRequest(f"cannot delete while {session.status}; interrupt the session and wait until it is idle")


def _summary_query(query: SessionQuery) -> SummaryQuery:
    created = CreatedRange(
        gt=None if query.created_at_gt is None else last_shown_as(query.created_at_gt),
        gte=None if query.created_at_gte is None else first_shown_as(query.created_at_gte),
        lt=None if query.created_at_lt is None else first_shown_as(query.created_at_lt),
        lte=None if query.created_at_lte is None else last_shown_as(query.created_at_lte),
    )
    wanted = SummaryQuery(
        statuses=frozenset(query.statuses),
        agent_id=query.agent_id,
        agent_version=None if query.agent_id is None else query.agent_version,
        created=created,
        include_archived=query.include_archived,
        order=query.order,
        limit=query.limit,
    )
    if query.page is None:
        return wanted
    order, side, micros, session_id = cursor.decode(query.page, "sessions", str, str, int, str)
    if order != query.order:
        raise InvalidRequest(f"page: this cursor belongs to the order '{order}', not '{query.order}'")
    position = SummaryPosition(from_micros(int(micros)), str(session_id))
    if not query.holds(position.created_at):
        raise InvalidRequest("page: the created_at filter leaves out the place this cursor points to")
    return replace(wanted, before=position) if side == "before" else replace(wanted, after=position)


def _page_cursor(query: SessionQuery, side: str, position: SummaryPosition | None) -> str | None:
    if position is None:
        return None
    return cursor.encode("sessions", query.order, side, to_micros(position.created_at), position.session_id)


async def _again(answer: bytes) -> Session:
    return Session.model_validate_json(answer)
