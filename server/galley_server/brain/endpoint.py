"""The connections to the model endpoint: clients of the SDK, each with a pool that stays small."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Final, Self

import anthropic
import httpx2

from galley_server.settings import ModelSettings

CONNECT_S: Final = 10.0
READ_S: Final = 120.0
"""The API pings a quiet stream every few seconds: one silent for this long is dead."""

# httpcore looks at every idle connection of its pool when a request begins and again when it ends. With 64 in one pool
# that is a fifth of all that a turn costs this process.
POOL: Final = 8


class Endpoint:
    """Hands out a client per request: the first that has room, so that few requests keep to few warm connections."""

    def __init__(self, first: anthropic.AsyncAnthropic, stack: AsyncExitStack) -> None:
        self.first = first
        self._stack = stack
        self._verify = httpx2.create_ssl_context()  # 20 ms each time, so it is made once
        self._clients = [first]
        self._busy = [0]

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: ModelSettings) -> AsyncIterator[Self]:
        async with AsyncExitStack() as stack:
            client = anthropic.AsyncAnthropic(
                api_key=settings.api_key.reveal() if settings.api_key else None,
                auth_token=settings.auth_token.reveal() if settings.auth_token else None,
                base_url=settings.base_url,
                max_retries=0,
                timeout=httpx2.Timeout(READ_S, connect=CONNECT_S),
            )
            yield cls(await stack.enter_async_context(client), stack)

    @property
    def pools(self) -> int:
        return len(self._clients)

    @contextmanager
    def client(self) -> Iterator[anthropic.AsyncAnthropic]:
        """A client for one request, from its start to the end of its stream."""
        place = next((place for place, busy in enumerate(self._busy) if busy < POOL), None)
        if place is None:
            place = self._another()
        self._busy[place] += 1
        try:
            yield self._clients[place]
        finally:
            self._busy[place] -= 1

    def _another(self) -> int:
        http = anthropic.DefaultAsyncHttpxClient(base_url=self.first.base_url, verify=self._verify)
        self._stack.push_async_callback(http.aclose)
        self._clients.append(self.first.with_options(http_client=http))
        self._busy.append(0)
        return len(self._clients) - 1
