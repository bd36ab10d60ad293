"""When a detached server ends by itself."""

import asyncio

import pytest
from galley_server.retire import Patience, Traffic, until_unneeded
from starlette.types import Message, Receive, Scope, Send


def test_patience_runs_out_after_the_grace() -> None:
    patience = Patience(10)
    assert [patience.runs_out(needed=False, now=now) for now in (0, 5, 9.9, 10)] == [False, False, False, True]


def test_one_moment_of_need_starts_the_grace_anew() -> None:
    patience = Patience(10)
    steps = [(False, 0), (False, 9), (True, 9.5), (False, 10), (False, 19), (False, 20)]
    assert [patience.runs_out(needed=needed, now=now) for needed, now in steps] == [False] * 5 + [True]


@pytest.mark.anyio
async def test_a_client_that_comes_at_the_last_moment_keeps_the_server() -> None:
    answers = iter([False, False, True])
    asked = []

    def retire() -> bool:
        asked.append(next(answers))
        return asked[-1]

    async with asyncio.timeout(5):
        await until_unneeded(lambda: False, retire, grace_s=0.01)
    assert asked == [False, False, True]


@pytest.mark.anyio
async def test_a_request_counts_until_its_answer_is_complete() -> None:
    counted: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        counted.append(traffic.requests)
        raise ConnectionAbortedError

    async def receive() -> Message:
        return {}

    async def send(message: Message) -> None:
        return None

    traffic = Traffic(app)
    with pytest.raises(ConnectionAbortedError):
        await traffic({"type": "http"}, receive, send)
    assert counted == [1]
    assert traffic.requests == 0
