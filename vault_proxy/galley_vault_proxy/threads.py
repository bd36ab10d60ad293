"""A bounded pool of threads that does not keep the process from ending.

The standard library's pool is joined at the end of the process, and a request to a Vault that hangs takes long.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """Threads are started as they are needed, and live until `close`."""

    def __init__(self, most: int, *, name: str) -> None:
        self._most = most
        self._name = name
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Not to be called from several threads at once. A future that is cancelled in time is never begun."""
        future: Future[T] = Future()
        self._queue.put((future, work))
        if not self._idle.acquire(blocking=False) and self._started < self._most:
            self._started += 1
            threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True).start()
        return future

    def close(self) -> None:
        """Nothing is begun any more. Threads end with what they are doing; nobody waits for them."""
        while not self._queue.empty():
            item = self._queue.get()
            if item is not None:
                item[0].cancel()
        for _ in range(self._started):
            self._queue.put(None)

    def _serve(self) -> None:
        while (item := self._queue.get()) is not None:
            _carry_out(*item)
            del item  # a thread without work must hold no secret of the last one
            self._idle.release()


def _carry_out(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:  # the thread's boundary: it goes to whoever waits
        future.set_exception(error)
    else:
        future.set_result(result)
