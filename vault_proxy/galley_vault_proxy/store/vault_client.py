"""Requests to Vault from the event loop: a bounded pool of threads, bounded retries, a circuit breaker."""

import asyncio
import random
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from typing import Final, Self

from galley_vault_proxy.settings import VaultSettings
from galley_vault_proxy.store.breaker import Breaker
from galley_vault_proxy.store.vault_adapter import Answer, Request, VaultAdapter
from galley_vault_proxy.store.vault_fault import Down, VaultFault
from galley_vault_proxy.threads import Threads

_THREADS: Final = 16
_PATIENT_THREADS: Final = 8
_MOST_WAITING: Final = 512
# Together some three seconds: about what an election of a new active node takes.
_PAUSES_S: Final = (0.1, 0.3, 0.9, 1.8)


class VaultClient:
    def __init__(self, settings: VaultSettings) -> None:
        self._timeout_s = settings.timeout_s
        self._adapter = VaultAdapter(settings, connections=_THREADS + _PATIENT_THREADS)
        self._threads = Threads(_THREADS, name="galley-vault")
        # What waits long must not keep the rest from being asked.
        self._patient_threads = Threads(_PATIENT_THREADS, name="galley-vault-patient")
        self._breaker = Breaker()
        self._waiting = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: VaultSettings) -> AsyncIterator[Self]:
        client = cls(settings)
        try:
            yield client
        finally:
            # A thread may be in the middle of a request, which is bounded; nobody waits for it.
            client._threads.close()
            client._patient_threads.close()
            await asyncio.to_thread(client._adapter.close)

    async def send(self, request: Request) -> Answer:
        """Send, and send again while that may help and cannot harm; all within VAULT_CLIENT_TIMEOUT.

        Raises VaultFault. A `patient` request is sent once and may take longer.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._timeout_s
        for pause in (*_PAUSES_S, None):
            if not self._breaker.admits(loop.time()):
                raise Down(f"{self._breaker.reason}; Vault is left alone for a moment", done=False)
            try:
                answer = await self._once(request, until - loop.time())
            except Down as fault:
                if pause is None or not _worth_a_retry(request, fault) or loop.time() + pause >= until:
                    self._note(request, fault)
                    raise
            except VaultFault:
                self._breaker.succeeded()  # it answers
                raise
            else:
                self._breaker.succeeded()
                return answer
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
        raise AssertionError("the last try either answers or raises")

    async def probe(self, request: Request, *, tells: bool = True) -> Answer:
        """Send once, breaker or not. `tells`: its success means that Vault is well. Raises VaultFault."""
        try:
            answer = await self._once(request, self._timeout_s)
        except Down as fault:
            self._note(request, fault)
            raise
        if tells:
            self._breaker.succeeded()
        return answer

    def _note(self, request: Request, fault: Down) -> None:
        if fault.ill and request.telling:
            self._breaker.failed(fault.message, asyncio.get_running_loop().time())

    async def _once(self, request: Request, timeout_s: float) -> Answer:
        if self._waiting >= _MOST_WAITING:
            raise Down("too many requests to Vault are waiting", done=False, passing=False, ill=False)
        pool = self._patient_threads if request.patient else self._threads
        self._waiting += 1
        loop = asyncio.get_running_loop()
        work = pool.submit(lambda: self._adapter.send(request, timeout_s=timeout_s))

        def ended(_: Future[Answer]) -> None:
            # Also when nobody waits any more: the thread is busy until now.
            with suppress(RuntimeError):  # the loop may be gone by then
                loop.call_soon_threadsafe(self._ended)

        work.add_done_callback(ended)
        try:
            async with asyncio.timeout(None if request.patient else timeout_s):
                return await asyncio.wrap_future(work)
        except TimeoutError:
            raise Down("Vault is slow: no answer in time", done=True) from None

    def _ended(self) -> None:
        self._waiting -= 1


def _worth_a_retry(request: Request, fault: Down) -> bool:
    return fault.passing and (request.again or not fault.done)
