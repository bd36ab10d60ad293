"""The official Python SDK, sync and async behind one face, and a record of everything the server answered it."""

import functools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import httpx2
from anthropic import Anthropic, AsyncAnthropic, DefaultAsyncHttpxClient, DefaultHttpxClient
from anthropic.pagination import SyncBidirectionalPageCursor, SyncPage, SyncPageCursor
from anthropic.types import beta
from anthropic.types.beta import sessions
from anthropic.types.shared import ErrorType
from anyio import to_thread
from pydantic import JsonValue, TypeAdapter, ValidationError

from tests.contract.sdk_strict import left_out, nulls, validate

Kind = Literal["sync", "async"]

_ID: Final = "[^/]+"
AGENT: Final = f"/v1/agents/{_ID}"
ENVIRONMENT: Final = f"/v1/environments/{_ID}"
SESSION: Final = f"/v1/sessions/{_ID}"
FILE: Final = f"/v1/files/{_ID}"
OBJECTS: Final[dict[tuple[str, str], Any]] = {
    ("POST", "/v1/agents"): beta.BetaManagedAgentsAgent,
    ("GET", "/v1/agents"): SyncPageCursor[beta.BetaManagedAgentsAgent],
    ("GET", AGENT): beta.BetaManagedAgentsAgent,
    ("POST", AGENT): beta.BetaManagedAgentsAgent,
    ("POST", f"{AGENT}/archive"): beta.BetaManagedAgentsAgent,
    ("GET", f"{AGENT}/versions"): SyncPageCursor[beta.BetaManagedAgentsAgent],
    ("POST", "/v1/environments"): beta.BetaEnvironment,
    ("GET", "/v1/environments"): SyncPageCursor[beta.BetaEnvironment],
    ("GET", ENVIRONMENT): beta.BetaEnvironment,
    ("POST", ENVIRONMENT): beta.BetaEnvironment,
    ("DELETE", ENVIRONMENT): beta.BetaEnvironmentDeleteResponse,
    ("POST", f"{ENVIRONMENT}/archive"): beta.BetaEnvironment,
    ("POST", "/v1/sessions"): beta.BetaManagedAgentsSession,
    ("GET", "/v1/sessions"): SyncBidirectionalPageCursor[beta.BetaManagedAgentsSession],
    ("GET", SESSION): beta.BetaManagedAgentsSession,
    ("POST", SESSION): beta.BetaManagedAgentsSession,
    ("DELETE", SESSION): beta.BetaManagedAgentsDeletedSession,
    ("POST", f"{SESSION}/archive"): beta.BetaManagedAgentsSession,
    ("POST", "/v1/files"): beta.BetaFileMetadata,
    ("GET", "/v1/files"): SyncPageCursor[beta.BetaFileMetadata],
    ("GET", FILE): beta.BetaFileMetadata,
    ("DELETE", FILE): beta.BetaDeletedFile,
    ("GET", "/v1/models"): SyncPage[beta.BetaModelInfo],
    ("GET", f"/v1/models/{_ID}"): beta.BetaModelInfo,
}
EVENTS: Final[dict[tuple[str, str], Any]] = {
    ("POST", f"{SESSION}/events"): sessions.BetaManagedAgentsSendSessionEvents,
    ("GET", f"{SESSION}/events"): SyncPageCursor[sessions.BetaManagedAgentsSessionEvent],
}
STREAMED: Final[Any] = sessions.BetaManagedAgentsStreamSessionEvents
# What the SDK's list of types does not have, though the API's list of errors does.
MORE_ERROR_TYPES: Final = {"request_too_large"}


@dataclass(frozen=True)
class Answer:
    method: str
    path: str
    status: int
    body: bytes

    def faults(self) -> Iterator[str]:
        """What in this answer is not as the SDK's own type says."""
        where = f"{self.method} {self.path} {self.status}"
        value = json.loads(self.body)
        if self.status >= 400:
            yield from (f"{where}: {fault}" for fault in _error_faults(value))
            return
        kind, is_events = _kind_of(self.method, self.path)
        try:
            validate(kind, self.body)
        except ValidationError as error:
            yield f"{where}: {error}"
            return
        if is_events:
            for index, event in enumerate(value["data"]):
                yield from (f"{where}: data[{index}]{fault}" for fault in event_faults(event))
        else:
            yield from (f"{where}: {place} is left out" for place in left_out(kind, value))


def event_faults(event: JsonValue) -> Iterator[str]:
    """A field without a value is left out of an event; only `processed_at` may be null, and is never left out.

    The agent in a `session.updated` is an object, and shows its nulls as every object does.
    """
    assert isinstance(event, dict)
    if "processed_at" not in event and not str(event["type"]).startswith("event_"):
        yield ".processed_at is left out"
    for place in nulls({key: value for key, value in event.items() if key not in ("processed_at", "agent")}):
        yield f"{place} is null"


def _error_faults(value: JsonValue) -> Iterator[str]:
    if not isinstance(value, dict) or set(value) != {"type", "error", "request_id"} or value["type"] != "error":
        yield f"not the envelope: {value}"
        return
    error = value["error"]
    assert isinstance(error, dict)
    if not set(error) <= {"type", "message", "details"}:
        yield f"unknown fields in {error}"
    if error["type"] not in MORE_ERROR_TYPES:
        TypeAdapter[str](ErrorType).validate_python(error["type"], strict=True)


def _kind_of(method: str, path: str) -> tuple[Any, bool]:
    for table in (OBJECTS, EVENTS):
        for (verb, pattern), kind in table.items():
            if verb == method and re.fullmatch(pattern, path):
                return kind, table is EVENTS
    raise AssertionError(f"no type is known for {method} {path}")


@dataclass
class Driver:
    """Calls either SDK with `await`; the sync one works in a thread."""

    kind: Kind
    client: Any
    answers: list[Answer] = field(default_factory=list)

    @property
    def beta(self) -> Any:
        return self.client.beta

    async def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.kind == "async":
            return await method(*args, **kwargs)
        return await to_thread.run_sync(functools.partial(method, *args, **kwargs))

    async def page(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """One page of a list, as the SDK gives it."""
        if self.kind == "async":
            return await method(*args, **kwargs)
        return await to_thread.run_sync(functools.partial(method, *args, **kwargs))

    async def all(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Every item of a list, over all its pages."""
        if self.kind == "async":
            return [item async for item in method(*args, **kwargs)]
        return await to_thread.run_sync(lambda: list(method(*args, **kwargs)))

    async def until(self, stream: Any, *types: str) -> list[Any]:
        """Read a stream up to an event of one of these types, and close it."""
        if self.kind == "async":
            return await _read_async(stream, types)
        return await to_thread.run_sync(_read_sync, stream, types)

    async def rest(self, stream: Any) -> list[Any]:
        """Read a stream to its end."""
        return await self.until(stream)

    def check(self) -> None:
        """Every answer so far is exactly of the SDK's type."""
        faults = [fault for answer in self.answers for fault in answer.faults()]
        assert not faults, "\n".join(faults)


def _read_sync(stream: Any, types: tuple[str, ...]) -> list[Any]:
    seen = []
    with stream:
        for event in stream:
            seen.append(event)
            if event.type in types:
                break
    return seen


async def _read_async(stream: Any, types: tuple[str, ...]) -> list[Any]:
    seen = []
    async with stream:
        async for event in stream:
            seen.append(event)
            if event.type in types:
                break
    return seen


def connect(kind: Kind, *, url: str, key: str) -> Driver:
    """The SDK as its users have it, with a hook of the HTTP library that notes what came back."""
    answers: list[Answer] = []

    def note(response: httpx2.Response) -> None:
        request = response.request
        answers.append(Answer(request.method, request.url.path, response.status_code, response.content))

    def note_sync(response: httpx2.Response) -> None:
        if _is_json(response):
            response.read()
            note(response)

    async def note_async(response: httpx2.Response) -> None:
        if _is_json(response):
            await response.aread()
            note(response)

    client: Any
    if kind == "sync":
        client = Anthropic(
            base_url=url,
            api_key=key,
            timeout=20,
            http_client=DefaultHttpxClient(event_hooks={"response": [note_sync]}),
        )
    else:
        client = AsyncAnthropic(
            base_url=url,
            api_key=key,
            timeout=20,
            http_client=DefaultAsyncHttpxClient(event_hooks={"response": [note_async]}),
        )
    return Driver(kind, client, answers)


def _is_json(response: httpx2.Response) -> bool:
    return response.headers.get("content-type", "").startswith("application/json")
