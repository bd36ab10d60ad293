"""The older event-stream transport as a link: one GET stream for everything that comes, POSTs for what goes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import urljoin, urlsplit

from galley_vault_proxy.mcp_door.beside import ungrouped
from galley_vault_proxy.mcp_door.failure import ServerFailed, ServerStatus
from galley_vault_proxy.mcp_door.fairness import Breaths, aside
from galley_vault_proxy.mcp_door.jsonrpc import dump, read_from_server
from galley_vault_proxy.mcp_door.limits import Limits
from galley_vault_proxy.mcp_door.link import Pipe, Unasked, Via, Wire
from galley_vault_proxy.mcp_door.relay import EVENTS, Relay, Upward, kind_of
from galley_vault_proxy.mcp_door.sse import EventSplitter, EventTooLarge, read_event
from galley_vault_proxy.mcp_door.upstream import ConnectionLost


@asynccontextmanager
async def run_sse(relay: Relay, limits: Limits, unasked: Unasked, via: Via) -> AsyncIterator[Pipe]:
    """Connect; the stream lasts as long as the block. Raises ServerFailed."""
    endpoint: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def send(message: Wire) -> None:
        visit = replace(via.visit, rule=replace(via.visit.rule, url=await asyncio.shield(endpoint)))
        up = Upward("POST", [(b"content-type", b"application/json")], dump(message), limits.list_s)
        async with relay.exchange(visit, via.screen, up) as response:
            if response.status >= 400:
                raise ServerStatus(visit.rule.name, response.status, [])

    pipe = Pipe(send, unasked)
    with ungrouped():
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(_read(relay, limits, via, pipe, endpoint), name="mcp-sse")
            try:
                async with asyncio.timeout(limits.list_s):
                    await asyncio.shield(endpoint)
                yield pipe
            except TimeoutError:
                raise ServerFailed("the server does not open its event stream", reason="sse_timeout") from None
            finally:
                reader.cancel()
                if not endpoint.done():
                    endpoint.cancel()


async def _read(relay: Relay, limits: Limits, via: Via, pipe: Pipe, endpoint: "asyncio.Future[str]") -> None:
    failed = ServerFailed("the server ended its event stream", reason="server_ended")
    try:
        up = Upward("GET", [(b"accept", EVENTS.encode())], silence_s=None)
        async with relay.exchange(via.visit, via.screen, up) as response:
            if response.status != 200 or kind_of(response) != EVENTS:
                raise ServerStatus(via.visit.rule.name, response.status, [])
            splitter, breaths = EventSplitter(limits.event), Breaths()
            async for chunk in response.chunks():
                for raw in splitter.feed(chunk):
                    await breaths.breathe()
                    event = read_event(raw)
                    if event.type == b"endpoint" and not endpoint.done():
                        endpoint.set_result(_same_origin(via.visit.rule.url, event.data or b""))
                    elif event.type == b"message" and event.data:
                        value = await aside(read_from_server, event.data)
                        if isinstance(value, dict):
                            pipe.arrived(value)
    except ServerFailed as error:
        failed = error
    except (ConnectionLost, ValueError, EventTooLarge):
        failed = ServerFailed("the server's event stream broke off", reason="connection_lost")
    pipe.lost(failed)
    if not endpoint.done():
        endpoint.set_exception(failed)


def _same_origin(url: str, given: bytes) -> str:
    """Where to post. Another origin would get the credential. Raises ServerFailed."""
    target = urljoin(url, given.decode("utf-8", "replace").strip())
    ours, theirs = urlsplit(url), urlsplit(target)
    if (ours.scheme, ours.netloc) != (theirs.scheme, theirs.netloc):
        raise ServerFailed("the server sends its messages to another host, which is refused", reason="redirect")
    return target
