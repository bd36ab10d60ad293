"""What every sandbox promises of its way out: ports inside, connections here, and nothing that one holds up."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from galley_sandbox.channels import MAX_TUNNELS
from galley_sandbox.errors import CallRefused, SandboxLost
from galley_sandbox.hand.files import ROOTS
from galley_sandbox.port import Hand, Sandbox, Tunnel
from galley_sandbox.way_out import (
    AUTHORITY,
    BUNDLE,
    EGRESS,
    MCP,
    PORTS,
    TOKEN_FILE,
    Door,
    WayOut,
    equip,
    forward,
    renew,
)

from tests.contract.sandbox_kit import bash, until

pytestmark = pytest.mark.anyio

PEM = b"-----BEGIN CERTIFICATE-----\nbm90IHJlYWxseQ==\n-----END CERTIFICATE-----\n"
# Opens connections, sends on each, and prints what came back.
TALK = """
import socket, sys
streams = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(int(sys.argv[2]))]
for number, stream in enumerate(streams):
    stream.sendall(b"%d" % number)
    stream.shutdown(socket.SHUT_WR)
print(",".join(stream.makefile("rb").read().decode() for stream in streams))
"""
# Sends without end to one that does not read.
FLOOD = """
import socket, sys
stream = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
sent = 0
stream.settimeout(1)
try:
    while True:
        sent += stream.send(bytes(65536))
except TimeoutError:
    open("/workspace/flooded", "w").write(str(sent))
stream.settimeout(None)
print(len(stream.makefile("rb").read()))
"""


async def write(hand: Hand, path: str, text: str) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield text.encode()

    await hand.put_file(path, source())


async def echo(tunnel: Tunnel) -> None:
    """Says everything back, and then which door it was."""
    while data := await tunnel.read():
        await tunnel.write(data)
    await tunnel.write(f"@{tunnel.door}".encode())
    await tunnel.end()


@asynccontextmanager
async def echoing(hand: Hand) -> AsyncIterator[None]:
    async def serve() -> None:
        async with asyncio.TaskGroup() as tasks:
            async for tunnel in hand.tunnels():
                tasks.create_task(echo(tunnel))

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(serve())
        yield
        task.cancel()


async def test_a_connection_inside_is_a_stream_of_bytes_here(hand: Hand) -> None:
    ports = await hand.listen(PORTS)
    await write(hand, "/workspace/talk.py", TALK)
    async with echoing(hand):
        assert (await bash(hand, f"python3 talk.py {ports[EGRESS]} 1")).text == "0@egress"
        assert (await bash(hand, f"python3 talk.py {ports[MCP]} 2")).text == "0@mcp,1@mcp"


async def test_the_ports_are_those_that_were_asked_for_and_only_inside(hand: Hand) -> None:
    assert await hand.listen(PORTS) == PORTS
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", PORTS[EGRESS])


async def test_a_port_that_a_program_has_taken_is_replaced_for_good(hand: Hand) -> None:
    await bash(hand, f"python3 -m http.server --bind 127.0.0.1 {PORTS[EGRESS]} >/dev/null 2>&1 & disown")
    await until(hand, f"(echo > /dev/tcp/127.0.0.1/{PORTS[EGRESS]}) 2>/dev/null")
    ports = await hand.listen(PORTS)
    assert ports[EGRESS] != PORTS[EGRESS]
    assert await hand.listen(PORTS) == ports


async def test_more_connections_than_are_carried_wait_their_turn(hand: Hand) -> None:
    ports = await hand.listen(PORTS)
    await write(hand, "/workspace/talk.py", TALK)
    async with echoing(hand):
        said = (await bash(hand, f"python3 talk.py {ports[EGRESS]} {MAX_TUNNELS + 20}")).text
    assert said.split(",") == [f"{number}@egress" for number in range(MAX_TUNNELS + 20)]


async def test_one_that_reads_nothing_holds_up_no_call_and_fills_no_memory(hand: Hand) -> None:
    ports = await hand.listen(PORTS)
    await write(hand, "/workspace/flood.py", FLOOD)
    async with asyncio.TaskGroup() as tasks:
        flooding = tasks.create_task(bash(hand, f"python3 flood.py {ports[EGRESS]}", shell="flood"))
        tunnels = hand.tunnels()
        tunnel = await anext(tunnels)
        await until(hand, "[ -e /workspace/flooded ]")
        sent = int((await bash(hand, "cat flooded")).text)
        # The window, what the sockets hold, and no more.
        assert sent < 16 << 20
        read = 0
        while read < sent:
            read += len(await tunnel.read())
        await tunnel.write(b"x" * 1_000_000)
        await tunnel.end()
        assert (await flooding).text == "1000000"
        tunnel.close()
    assert read == sent


async def test_a_program_that_goes_away_is_noticed(hand: Hand) -> None:
    ports = await hand.listen(PORTS)
    await bash(hand, f"exec 7<>/dev/tcp/127.0.0.1/{ports[EGRESS]}; printf hello >&7")
    tunnel = await anext(hand.tunnels())
    assert await tunnel.read() == b"hello"
    await bash(hand, "exec 7>&-")
    assert await tunnel.read() == b""
    with pytest.raises(ConnectionResetError):
        await talk_on(tunnel)


async def talk_on(tunnel: Tunnel) -> None:
    async with asyncio.timeout(10):
        while True:
            await tunnel.write(b"is anybody there?" * 1000)


async def test_closing_a_tunnel_closes_the_connection_inside(hand: Hand) -> None:
    ports = await hand.listen(PORTS)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(bash(hand, f"cat < /dev/tcp/127.0.0.1/{ports[EGRESS]}; echo over", shell="other"))
        tunnel = await anext(hand.tunnels())
        tunnel.close()
        assert "over" in (await waiting).text


async def test_who_connects_while_there_is_no_stream_waits_for_the_next(sandbox: Sandbox) -> None:
    async with sandbox.connect() as hand:
        ports = await hand.listen(PORTS)
        await write(hand, "/workspace/talk.py", TALK)
        # Its first connection ends with the stream; then it tries again.
        again = f"cat <&7; python3 talk.py {ports[EGRESS]} 1 > said; mv said kept"
        await bash(hand, f"exec 7<>/dev/tcp/127.0.0.1/{ports[EGRESS]}; ({again}) >/dev/null 2>&1 & disown")
        await anext(hand.tunnels())
    async with sandbox.connect() as hand:
        assert await hand.listen(PORTS) == ports
        async with echoing(hand):
            await until(hand, "[ -e /workspace/kept ]")
            assert (await bash(hand, "cat kept")).text == "0@egress"


async def test_a_dropped_stream_ends_its_tunnels_on_both_sides(sandbox: Sandbox) -> None:
    async with sandbox.connect() as hand:
        ports = await hand.listen(PORTS)
        await bash(hand, f"exec 7<>/dev/tcp/127.0.0.1/{ports[EGRESS]}")
        tunnels = hand.tunnels()
        tunnel = await anext(tunnels)
    with pytest.raises(SandboxLost):
        await tunnel.read()
    with pytest.raises(SandboxLost):
        await anext(tunnels)
    async with sandbox.connect() as hand:
        assert (await bash(hand, "cat <&7; echo over")).text.endswith("over")


async def test_variables_reach_shells_that_run_already(hand: Hand) -> None:
    await bash(hand, "cd /tmp; MINE=1")
    await hand.set_environment({"WAY": "it's $HOME\nand back", "OTHER": "x"})
    assert (await bash(hand, 'echo "$MINE $PWD"; printenv WAY')).text == "1 /tmp\nit's $HOME\nand back"
    assert (await bash(hand, "printenv OTHER", shell="new")).text == "x"
    await hand.set_environment({"OTHER": None, "WAY": "changed"})
    assert (await bash(hand, 'printenv OTHER; printenv WAY; echo "$MINE"')).text == "changed\n1"


async def test_what_a_command_set_itself_is_left_alone(hand: Hand) -> None:
    await hand.set_environment({"HTTP_PROXY": "a", "OTHER": "x"})
    await bash(hand, "export HTTP_PROXY=mine")
    await hand.set_environment({"OTHER": "y"})
    assert (await bash(hand, "echo $HTTP_PROXY $OTHER")).text == "mine y"


@pytest.mark.parametrize("name", ["", "1x", "a-b", "x;rm -rf /", "a\nb"])
async def test_a_name_that_is_none_is_refused_and_changes_nothing(hand: Hand, name: str) -> None:
    with pytest.raises(CallRefused):
        await hand.set_environment({"FIRST": "1", name: "x"})
    assert (await bash(hand, "printenv FIRST || echo unset")).text.endswith("unset")


async def test_a_sandbox_is_equipped_and_its_token_renewed_in_place(hand: Hand) -> None:
    way = WayOut(await hand.listen(PORTS), "galley1.first", PEM, {"API_KEY": "sk-placeholder"})
    await equip(hand, way)
    said = await bash(hand, f"stat -c %a {TOKEN_FILE}; cat {TOKEN_FILE}; echo $API_KEY; echo $GALLEY_MCP_URL; umask")
    assert said.text.split("\n")[:4] == [
        "600",
        "galley1.first",
        "sk-placeholder",
        f"http://127.0.0.1:{way.ports[MCP]}/mcp",
    ]
    await renew(hand, WayOut(way.ports, "galley1.second", PEM))
    again = await bash(hand, f"stat -c %a {TOKEN_FILE}; cat {TOKEN_FILE}; echo $HTTPS_PROXY")
    assert again.text == f"600\ngalley1.second\nhttp://galley:galley1.second@127.0.0.1:{way.ports[EGRESS]}"


async def test_the_bundle_holds_what_the_image_trusts_and_the_authority(backend: str, hand: Hand) -> None:
    await equip(hand, WayOut(await hand.listen(PORTS), "galley1.t", PEM))
    counts = await bash(hand, f"grep -c BEGIN {AUTHORITY}; grep -c BEGIN {BUNDLE}; tail -n 3 {BUNDLE}")
    own, all_of_them, *last = counts.text.split("\n")
    assert (own, "\n".join(last) + "\n") == ("1", PEM.decode())
    found = (await bash(hand, f"cat {' '.join(ROOTS)} 2>/dev/null | grep -c BEGIN")).text
    assert (int(all_of_them) > 1) == (not found.startswith("0"))
    if backend == "bubblewrap" and Path(ROOTS[0]).exists():  # noqa: ASYNC240
        assert int(all_of_them) > 50  # what this machine trusts, its sandboxes do


async def test_forwarded_connections_greet_the_door_first(hand: Hand, tmp_path: Path) -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def door(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()
        heard.put_nowait(data)
        writer.write(json.dumps(len(data)).encode())
        writer.close()

    path = tmp_path / "door.sock"
    ports = await hand.listen(PORTS)
    await write(hand, "/workspace/talk.py", TALK)
    server = await asyncio.start_unix_server(door, path)
    async with server, asyncio.TaskGroup() as tasks:
        task = tasks.create_task(forward(hand, {EGRESS: Door(str(path), b"HELLO\n"), MCP: Door("/nowhere", b"")}))
        assert (await bash(hand, f"python3 talk.py {ports[EGRESS]} 1")).text == "7"
        assert await heard.get() == b"HELLO\n0"
        # A door that nobody answers at is a closed connection, and the others go on.
        assert "0" not in (await bash(hand, f"python3 talk.py {ports[MCP]} 1 2>/dev/null")).text
        assert (await bash(hand, f"python3 talk.py {ports[EGRESS]} 1")).text == "7"
        task.cancel()


async def test_forwarding_ends_with_the_stream(sandbox: Sandbox) -> None:
    async with asyncio.TaskGroup() as tasks:
        async with sandbox.connect() as hand:
            await hand.listen(PORTS)
            task = tasks.create_task(lost(hand))
            await bash(hand, "true")
        assert await task


async def lost(hand: Hand) -> bool:
    with suppress(SandboxLost):
        await forward(hand, {})
    return True
