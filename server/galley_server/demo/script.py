"""A queue of replies for tests, which records what it was asked and how each answer ended."""

import asyncio
from collections.abc import Mapping

from galley_server.demo.reply import Answer, Ending
from galley_server.demo.transcript import JSON, Request


class ScriptExhausted(Exception):
    """A request came after the last reply was given. Raised again where the server was started."""


class Script:
    """Replies in the order they were given, one per request, whoever asks."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self._given = 0
        self._moved = asyncio.Event()
        self.requests: list[Request] = []
        self.endings: list[Ending] = []

    def __call__(self, request: Request) -> Answer:
        self.requests.append(request)
        self._wake()
        if self._given == len(self._answers):
            raise ScriptExhausted(
                f"request {len(self.requests)} has no reply: the script holds {len(self._answers)}. It ends with "
                f"{request.gist}"
            )
        self._given += 1
        return self._answers[self._given - 1]

    def ended(self, request: Request, ending: Ending) -> None:
        self.endings.append(ending)
        self._wake()

    @property
    def bodies(self) -> list[Mapping[str, JSON]]:
        """Every body received, as parsed JSON."""
        return [request.body for request in self.requests]

    @property
    def left(self) -> int:
        return len(self._answers) - self._given

    def add(self, *answers: Answer) -> None:
        self._answers.extend(answers)

    async def asked(self, times: int = 1) -> Request:
        """Wait until so many requests came, and return that one. For a test in the server's event loop."""
        while len(self.requests) < times:
            await self._moved.wait()
        return self.requests[times - 1]

    async def finished(self, times: int = 1) -> Ending:
        """Wait until so many answers ended, and say how that one did."""
        while len(self.endings) < times:
            await self._moved.wait()
        return self.endings[times - 1]

    def _wake(self) -> None:
        # Each wait is for the next movement: whoever waits holds the old event.
        self._moved.set()
        self._moved = asyncio.Event()
