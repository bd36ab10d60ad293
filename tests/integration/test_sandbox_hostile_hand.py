"""A hand is hostile territory: whatever comes out of it, the client holds little, believes little and ends soon."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from galley_sandbox import client as client_module
from galley_sandbox import results
from galley_sandbox.channels import MAX_TUNNELS, Ended, Link, Opened
from galley_sandbox.client import HandClient
from galley_sandbox.errors import CallRefused, FileRefused, HandMisbehaved, SandboxLost
from galley_sandbox.frames import Frame, Kind, encode
from galley_sandbox.stream import open_unix_stream

pytestmark = pytest.mark.anyio

Answer = Callable[["FakeHand", int, dict[str, object]], Awaitable[None]]
GOOD = json.dumps({"content": [{"type": "text", "text": "fine"}], "is_error": False}).encode()


class FakeHand:
    """Speaks the protocol well enough to misuse it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer) -> None:
        self.link = Link(first=False)
        self.reader = reader
        self.writer = writer
        self._answer = answer
        self._meta: dict[int, dict[str, object]] = {}

    async def serve(self) -> None:
        await self.flush()
        while data := await self.reader.read(65536):
            self.link.receive(data)
            while (event := self.link.next_event()) is not None:
                if isinstance(event, Opened):
                    self._meta[event.channel] = json.loads(event.meta)
                elif isinstance(event, Ended):
                    await self._request(event.channel)
            await self.flush()

    async def _request(self, number: int) -> None:
        meta = self._meta[number]
        if meta["op"] == "hello":
            self.reply(number, b'{"incarnation": "inc_1"}')
        else:
            await self._answer(self, number, meta)

    def reply(self, number: int, data: bytes) -> None:
        self.link.write(number, data)
        self.link.end(number)

    async def flush(self) -> None:
        while data := self.link.take():
            self.writer.write(data)
        await self.writer.drain()


@asynccontextmanager
async def talking_to(folder: Path, answer: Answer, *, incarnation: str = "inc_1") -> AsyncIterator[HandClient]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await FakeHand(reader, writer, answer).serve()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, folder / "hand.sock")
    async with (
        server,
        asyncio.timeout(20),
        open_unix_stream(str(folder / "hand.sock")) as stream,
        HandClient.open(stream, incarnation=incarnation, wall_s=1) as hand,
    ):
        yield hand


def raw(*frames: Frame) -> Answer:
    async def answer(hand: FakeHand, number: int, meta: dict[str, object]) -> None:
        await hand.flush()
        hand.writer.write(b"".join(encode(frame) for frame in frames))

    return answer


async def good(hand: FakeHand, number: int, meta: dict[str, object]) -> None:
    hand.reply(number, GOOD)


async def silent(hand: FakeHand, number: int, meta: dict[str, object]) -> None:
    pass


async def test_a_good_answer_gets_through(tmp_path: Path) -> None:
    async with talking_to(tmp_path, good) as hand:
        assert (await hand.call("c", "bash", {})).text == "fine"


async def test_another_incarnation_is_not_talked_to(tmp_path: Path) -> None:
    with pytest.raises(SandboxLost, match="Another hand answered: 'inc_1'"):
        async with talking_to(tmp_path, good, incarnation="inc_2"):
            pass


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Kind.DATA, 77, b"to nobody"),
        Frame(Kind.OPEN, 1, b"not its number"),
        Frame(Kind.HELLO, 0, b"galley-hand/1"),
        Frame(Kind.WINDOW, 3, b"\xff\xff\xff\xff"),
    ],
)
async def test_a_broken_protocol_ends_the_stream_for_all(tmp_path: Path, frame: Frame) -> None:
    async with talking_to(tmp_path, raw(frame)) as hand:
        with pytest.raises(HandMisbehaved, match="broke the protocol"):
            await hand.call("c", "bash", {})
        with pytest.raises(HandMisbehaved):
            await hand.query("c")


async def test_a_frame_too_large_is_not_waited_for(tmp_path: Path) -> None:
    async def answer(hand: FakeHand, number: int, meta: dict[str, object]) -> None:
        hand.writer.write(b"\x02\x00\x00\x00\x03\xff\xff\xff\xff")

    async with talking_to(tmp_path, answer) as hand:
        with pytest.raises(HandMisbehaved, match="announced 4294967295 bytes"):
            await hand.call("c", "bash", {})


async def test_a_result_without_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "MAX_RESULT", 1_000_000)

    async def answer(hand: FakeHand, number: int, meta: dict[str, object]) -> None:
        while not hand.reader.at_eof():
            while (space := hand.link.space(number)) > 0:
                hand.link.write(number, bytes(space))
                await hand.flush()
            hand.link.receive(await hand.reader.read(65536))
            while hand.link.next_event() is not None:
                pass
            await hand.flush()

    async with talking_to(tmp_path, answer) as hand:
        with pytest.raises(HandMisbehaved, match="more than 1000000 bytes"):
            await hand.call("c", "bash", {})


@pytest.mark.parametrize("answer", [b"", b"[]", b"{", b'{"content": [{"type": "server_tool"}], "is_error": false}'])
async def test_what_is_no_result_is_not_passed_on(tmp_path: Path, answer: bytes) -> None:
    async def reply(hand: FakeHand, number: int, meta: dict[str, object]) -> None:
        hand.reply(number, answer)

    async with talking_to(tmp_path, reply) as hand:
        with pytest.raises(HandMisbehaved):
            await hand.call("c", "bash", {})


async def test_a_hand_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "GRACE_S", 0.2)
    async with talking_to(tmp_path, silent) as hand:
        with pytest.raises(HandMisbehaved, match="did not end call c"):
            await hand.call("c", "bash", {}, timeout_s=0.1)


async def test_a_hand_that_says_nothing_at_all_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "SILENCE_S", 0.02)
    monkeypatch.setattr(client_module, "LOST_AFTER_S", 0.1)

    async def stall(hand: FakeHand, number: int, meta: dict[str, object]) -> None:
        await hand.reader.read()

    async with talking_to(tmp_path, stall) as hand:
        with pytest.raises(SandboxLost, match="silent for"):
            await hand.call("c", "bash", {})


async def test_a_quiet_hand_that_answers_pings_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "SILENCE_S", 0.02)
    monkeypatch.setattr(client_module, "LOST_AFTER_S", 0.2)
    async with talking_to(tmp_path, silent) as hand:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.6):
                await hand.query("c")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await hand.query("c")


async def test_channels_it_opens_lead_nowhere_and_stay_few(tmp_path: Path) -> None:
    async def answer(hand: FakeHand, number: int, meta: dict[str, object]) -> None:
        for _ in range(10 if meta["id"] == "few" else MAX_TUNNELS + 1):
            hand.link.open(b"let me out")
        hand.reply(number, GOOD)

    async with talking_to(tmp_path, answer) as hand:
        assert (await hand.call("few", "bash", {})).text == "fine"
        with pytest.raises(HandMisbehaved, match="one more than the 64 allowed"):
            await hand.call("many", "bash", {})


async def test_a_refusal_is_told_by_its_reason(tmp_path: Path) -> None:
    async def refuse(hand: FakeHand, number: int, meta: dict[str, object]) -> None:
        hand.link.reset(number, "not today")

    async def source() -> AsyncIterator[bytes]:
        yield b"x"

    async with talking_to(tmp_path, refuse) as hand:
        with pytest.raises(CallRefused, match="not today"):
            await hand.call("c", "bash", {})
        with pytest.raises(FileRefused, match="/f: not today"):
            await hand.put_file("/f", source())
        with pytest.raises(FileRefused, match="not today"):
            await anext(hand.get_file("/f"))


async def test_an_error_of_the_body_comes_out_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with talking_to(tmp_path, good):
            raise LookupError("mine")


async def test_a_stream_that_is_not_a_hand_is_lost(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with (
        await asyncio.start_unix_server(serve, tmp_path / "hand.sock"),
        open_unix_stream(str(tmp_path / "hand.sock")) as stream,
    ):
        with pytest.raises(SandboxLost):
            async with HandClient.open(stream, incarnation="inc_1", wall_s=1):
                pass
