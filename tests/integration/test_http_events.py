"""Streams that resume, requests that repeat, and a server that stops: over real HTTP, store and brain."""

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from anthropic._streaming import ServerSentEvent, SSEDecoder

from tests.contract.sdk_server import Galley, running_galley

pytest_plugins = ["tests.contract.galley_fixture"]
pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
IDLE = "session.status_idle"
WEATHER = {"type": "custom", "name": "weather", "description": "x", "input_schema": {"type": "object"}}


def client_of(galley: Galley) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=galley.url, headers={"x-api-key": galley.key}, timeout=20)


@pytest.fixture
async def client(galley: Galley) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(galley) as client:
        yield client


async def made(client: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> Any:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def new_session(client: httpx2.AsyncClient, **more: Any) -> str:
    agent = await made(client, "/v1/agents", {"name": "a", "model": "scripted-1", "tools": [WEATHER]})
    environment = await made(client, "/v1/environments", {"name": str(uuid.uuid4())})
    session = await made(client, "/v1/sessions", {"agent": agent["id"], "environment_id": environment["id"], **more})
    return str(session["id"])


def said(text: str) -> dict[str, Any]:
    return {"type": "user.message", "content": [{"type": "text", "text": text}]}


async def send(client: httpx2.AsyncClient, session_id: str, *events: dict[str, Any]) -> Any:
    return await made(client, f"/v1/sessions/{session_id}/events", {"events": list(events)})


@asynccontextmanager
async def listening(
    client: httpx2.AsyncClient, session_id: str, *, headers: dict[str, str] | None = None, **query: str
) -> AsyncIterator[AsyncIterator[ServerSentEvent]]:
    path = f"/v1/sessions/{session_id}/events/stream"
    async with asyncio.timeout(15), client.stream("GET", path, params=query, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()

        async def events() -> AsyncIterator[ServerSentEvent]:
            async for event in SSEDecoder().aiter_bytes(answer.aiter_bytes()):
                if event.event is not None:
                    yield event

        yield events()


async def until_idle(events: AsyncIterator[ServerSentEvent], *, times: int = 1) -> list[ServerSentEvent]:
    seen = []
    async for event in events:
        seen.append(event)
        times -= event.event == IDLE
        if not times:
            break
    return seen


async def turn(client: httpx2.AsyncClient, session_id: str, text: str) -> list[ServerSentEvent]:
    async with listening(client, session_id) as events:
        await send(client, session_id, said(text))
        return await until_idle(events)


def shown(events: list[ServerSentEvent]) -> list[tuple[str | None, str]]:
    return [(event.id, event.data) for event in events]


async def test_a_stream_begins_now(client: httpx2.AsyncClient) -> None:
    session_id = await new_session(client)
    await turn(client, session_id, "before")
    seen = await turn(client, session_id, "after")
    assert [event.json()["content"][0]["text"] for event in seen if event.event == "agent.message"] == [
        "You said: after"
    ]


async def test_a_stream_resumes_from_every_cursor_without_gap_or_duplicate(client: httpx2.AsyncClient) -> None:
    session_id = await new_session(client)
    live = await turn(client, session_id, "one") + await turn(client, session_id, "two")
    async with listening(client, session_id, after_event_id="row_0") as events:
        whole = await until_idle(events, times=2)
    assert shown(whole) == shown(live)
    for position in range(0, len(whole) - 1, 3):
        async with listening(client, session_id, after_event_id=str(whole[position].id)) as events:
            rest = await until_idle(events, times=2 - [one.event for one in whole[: position + 1]].count(IDLE))
        assert shown(rest) == shown(whole[position + 1 :])


async def test_a_stream_resumed_in_the_middle_of_a_turn_joins_history_and_what_comes(
    client: httpx2.AsyncClient,
) -> None:
    session_id = await new_session(client)
    async with listening(client, session_id) as first:
        await send(client, session_id, said("a long story about cats and dogs and everything else there is"))
        begun = await anext(first)
        async with listening(client, session_id, after_event_id=str(begun.id)) as second:
            resumed = await until_idle(second)
        assert shown(resumed) == shown(await until_idle(first))


async def test_the_header_of_a_reconnecting_browser_counts_more_than_its_url(client: httpx2.AsyncClient) -> None:
    session_id = await new_session(client)
    whole = await turn(client, session_id, "one")
    headers = {"last-event-id": str(whole[2].id)}
    async with listening(client, session_id, headers=headers, after_event_id="row_0") as events:
        assert shown(await until_idle(events)) == shown(whole[3:])


async def test_an_events_own_id_is_a_cursor_too(client: httpx2.AsyncClient) -> None:
    session_id = await new_session(client)
    whole = await turn(client, session_id, "one")
    async with listening(client, session_id, after_event_id=whole[0].json()["id"]) as events:
        assert shown(await until_idle(events)) == shown(whole[1:])


async def test_a_queued_message_shows_when_it_comes_and_again_when_it_is_processed(
    client: httpx2.AsyncClient,
) -> None:
    session_id = await new_session(client)
    sent = (await turn(client, session_id, "one"))[:]
    mine = [event.json() for event in sent if event.event == "user.message"]
    assert [event["processed_at"] is None for event in mine] == [True, False]
    assert len({event["id"] for event in mine}) == 1


async def test_a_list_begins_after_a_cursor(client: httpx2.AsyncClient) -> None:
    session_id = await new_session(client)
    await turn(client, session_id, "one")
    path = f"/v1/sessions/{session_id}/events"
    whole = (await client.get(path)).json()["data"]
    async with listening(client, session_id, after_event_id="row_0") as events:
        marks = {event.json()["id"]: event.id for event in await until_idle(events)}
    after = (await client.get(path, params={"after_event_id": marks[whole[3]["id"]]})).json()["data"]
    assert [event["id"] for event in after] == [event["id"] for event in whole[4:]]


def uploaded(client: httpx2.AsyncClient, key: str, content: bytes) -> Any:
    files = {"file": ("a.txt", content, "text/plain")}
    return client.post("/v1/files", files=files, headers={"idempotency-key": key})


REPEATED: list[tuple[str, dict[str, Any] | None, dict[str, Any]]] = [
    ("/v1/agents", {"name": "a", "model": "scripted-1"}, {"name": "b", "model": "scripted-1"}),
    ("/v1/agents/{agent}", {"name": "b"}, {"name": "c"}),
    ("/v1/agents/{agent}/archive", None, {}),
    ("/v1/environments", {"name": "{new}"}, {"name": "{new} other"}),
    ("/v1/environments/{environment}", {"description": "b"}, {"description": "c"}),
    ("/v1/environments/{environment}/archive", None, {}),
    (
        "/v1/sessions",
        {"agent": "{agent}", "environment_id": "{environment}"},
        {"agent": "{agent}", "environment_id": "{environment}", "title": "other"},
    ),
    ("/v1/sessions/{session}", {"title": "b"}, {"title": "c"}),
    ("/v1/sessions/{session}/archive", None, {}),
    ("/v1/sessions/{session}/events", {"events": [said("hi")]}, {"events": [said("ho")]}),
]


@pytest.mark.parametrize(("path", "body", "other"), REPEATED, ids=[path for path, _, _ in REPEATED])
async def test_a_repeated_key_gets_the_first_answer_again_on_every_post(
    client: httpx2.AsyncClient, path: str, body: dict[str, Any] | None, other: dict[str, Any]
) -> None:
    session_id = await new_session(client)
    session = (await client.get(f"/v1/sessions/{session_id}")).json()
    names = {
        "{agent}": session["agent"]["id"],
        "{environment}": session["environment_id"],
        "{session}": session_id,
        "{new}": str(uuid.uuid4()),
    }

    def fill(text: str) -> str:
        return re.sub(r"\{[a-z]+\}", lambda found: names[found[0]], text)

    async def post(content: dict[str, Any] | None) -> httpx2.Response:
        filled = None if content is None else json.loads(fill(json.dumps(content)))
        return await client.post(fill(path), json=filled, headers={"idempotency-key": key})

    key = str(uuid.uuid4())
    # At once: the second must not slip in between the first's look-up and its effect.
    async with asyncio.TaskGroup() as tasks:
        twins = [tasks.create_task(post(body)) for _ in range(3)]
    first, *others = (twin.result() for twin in twins)
    again = await post(body)
    assert first.status_code == 200, first.text
    assert {answer.content for answer in (*others, again)} == {first.content}
    if other:
        refused = await post(other)
        assert refused.status_code == 400
        assert key in refused.json()["error"]["message"]


async def test_an_upload_repeats_by_its_content_whatever_its_boundary(client: httpx2.AsyncClient) -> None:
    key = str(uuid.uuid4())
    first, again = await uploaded(client, key, b"hello"), await uploaded(client, key, b"hello")
    assert (first.status_code, first.content) == (200, again.content)
    assert (await uploaded(client, key, b"other")).status_code == 400


async def test_a_refused_request_leaves_its_key_free(client: httpx2.AsyncClient) -> None:
    key = {"idempotency-key": str(uuid.uuid4())}
    assert (await client.post("/v1/agents", json={"name": "a"}, headers=key)).status_code == 400
    assert (await client.post("/v1/agents", json={"name": "a", "model": "m"}, headers=key)).status_code == 200


async def test_a_key_is_still_known_after_a_restart(tmp_path: Path) -> None:
    key = {"idempotency-key": "the-same"}
    answers = []
    for _ in range(2):
        async with running_galley(tmp_path) as galley, client_of(galley) as client:
            answers.append(await client.post("/v1/agents", json={"name": "a", "model": "m"}, headers=key))
            assert len((await client.get("/v1/agents")).json()["data"]) == 1
    assert answers[0].content == answers[1].content


async def test_a_server_that_stops_ends_its_streams_at_a_cursor_the_next_one_knows(tmp_path: Path) -> None:
    async with running_galley(tmp_path) as galley:
        client = client_of(galley)
        session_id = await new_session(client)
        whole = await turn(client, session_id, "one")
        streams = [
            await client.send(
                client.build_request("GET", f"/v1/sessions/{session_id}/events/stream?after_event_id=row_0"),
                stream=True,
            )
            for _ in range(3)
        ]
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 5
    for stream in streams:
        assert stream.status_code == 200
        # No error: the body has its proper end.
        await stream.aread()
        await stream.aclose()
    await client.aclose()
    async with (
        running_galley(tmp_path) as galley,
        client_of(galley) as client,
        listening(client, session_id, after_event_id=str(whole[1].id)) as events,
    ):
        assert shown(await until_idle(events)) == shown(whole[2:])


async def test_health_wants_no_key(galley: Galley) -> None:
    async with httpx2.AsyncClient(base_url=galley.url) as client:
        answer = await client.get("/healthz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        assert (await client.head("/healthz")).status_code == 200
        assert (await client.post("/healthz")).status_code == 405


async def test_the_documented_paths_are_those_there_are(client: httpx2.AsyncClient) -> None:
    page = (ROOT / "docs" / "http.md").read_text()
    documented = re.findall(r"^\| `(/\S+)` \| ([A-Z, ]+) \|$", page, flags=re.MULTILINE)
    assert len(documented) > 15
    for path, methods in documented:
        answer = await client.request("OPTIONS", re.sub(r"\{\w+\}", "x", path))
        assert answer.status_code == 405, path
        assert sorted(answer.headers["allow"].split(", ")) == sorted(methods.split(", ")), path
