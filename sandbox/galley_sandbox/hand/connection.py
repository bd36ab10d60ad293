"""One stream from a server: its channels, and what is asked on each of them."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from galley_sandbox.channels import Drained, Ended, Link, Opened, Received, WasReset
from galley_sandbox.frames import FramingError
from galley_sandbox.hand import files
from galley_sandbox.hand.ledger import Refused

if TYPE_CHECKING:
    import socket
    from typing import Any

    from galley_sandbox.channels import Event
    from galley_sandbox.hand.resident import Resident
    from galley_sandbox.hand.tunnels import Tunnel

MAX_INPUT = 16 * 1024 * 1024
_READ = 256 * 1024


class Exchange:
    """What one channel is for. By default it takes no data and answers when the peer has ended its side."""

    def __init__(self, connection: Connection, number: int, meta: dict[str, Any]) -> None:
        self.connection = connection
        self.number = number
        self.meta = meta
        self._to_send = memoryview(b"")
        self._then_end = False

    def received(self, data: bytes) -> None:
        raise Refused("no data is expected here")

    def ended(self) -> None:
        """The peer has said all."""

    def broken(self) -> None:
        """The channel or the whole stream is gone."""

    def answer(self, data: bytes) -> None:
        """Send all of it, as the window allows, and end."""
        self._to_send = memoryview(data)
        self._then_end = True
        self.drained()

    def drained(self) -> None:
        link = self.connection.link
        while self._to_send:
            size = min(link.space(self.number), len(self._to_send))
            if size <= 0:
                return
            link.write(self.number, bytes(self._to_send[:size]))
            self._to_send = self._to_send[size:]
        if self._then_end:
            self._then_end = False
            if link.is_open(self.number):
                link.end(self.number)
                self.connection.flush_soon()


class HelloExchange(Exchange):
    def ended(self) -> None:
        incarnation = self.connection.resident.config.incarnation
        self.answer(json.dumps({"incarnation": incarnation}).encode())


class CallExchange(Exchange):
    def __init__(self, connection: Connection, number: int, meta: dict[str, Any]) -> None:
        super().__init__(connection, number, meta)
        self._input = bytearray()
        self._gone = False

    def received(self, data: bytes) -> None:
        self._input += data
        if len(self._input) > MAX_INPUT:
            raise Refused(f"the input is larger than {MAX_INPUT} bytes")
        self.connection.link.consumed(self.number, len(data))

    def ended(self) -> None:
        self.connection.resident.call(self.meta, bytes(self._input), self._result)
        self._input.clear()

    def _result(self, result: bytes) -> None:
        if not self._gone:
            self.answer(result)
            self.connection.flush_soon()

    def broken(self) -> None:
        self._gone = True
        self.connection.resident.leave(str(self.meta.get("id", "")), self._result)


class QueryExchange(Exchange):
    def ended(self) -> None:
        state, result = self.connection.resident.query(str(self.meta.get("id", "")))
        # The kept result is JSON already; it goes behind the first line as it is.
        self.answer(json.dumps({"state": state}).encode() + b"\n" + (result or b""))


class AcknowledgeExchange(Exchange):
    def ended(self) -> None:
        self.connection.resident.acknowledge(str(self.meta.get("id", "")))
        self.answer(b"")


class CancelExchange(Exchange):
    def ended(self) -> None:
        self.connection.resident.cancel(str(self.meta.get("id", "")))
        self.answer(b"")


class EndExchange(Exchange):
    """The server wants this hand, and with it the sandbox, to end."""

    def ended(self) -> None:
        self.connection.resident.loop.stop()


class ListenExchange(Exchange):
    """The server will take what comes to these ports."""

    def ended(self) -> None:
        doors = self.meta.get("doors")
        if not isinstance(doors, dict):
            raise Refused("the doors are an object of ports by name")
        ports = self.connection.resident.tunnels.listen(doors, self.connection)
        self.answer(json.dumps(ports).encode())


class EnvironmentExchange(Exchange):
    def __init__(self, connection: Connection, number: int, meta: dict[str, Any]) -> None:
        super().__init__(connection, number, meta)
        self._variables = bytearray()

    def received(self, data: bytes) -> None:
        self._variables += data
        if len(self._variables) > MAX_INPUT:
            raise Refused(f"the variables are larger than {MAX_INPUT} bytes")
        self.connection.link.consumed(self.number, len(data))

    def ended(self) -> None:
        try:
            wanted = json.loads(self._variables)
        except ValueError:
            raise Refused("the variables are not JSON") from None
        self.connection.resident.surroundings.change(wanted)
        self.answer(b"")


class PutExchange(Exchange):
    def __init__(self, connection: Connection, number: int, meta: dict[str, Any]) -> None:
        super().__init__(connection, number, meta)
        self._file = files.Incoming(connection.resident, meta, self._took, self._stored)

    def received(self, data: bytes) -> None:
        self._file.add(data)

    def ended(self) -> None:
        self._file.end()

    def broken(self) -> None:
        self._file.abandon()

    def _took(self, size: int) -> None:
        self.connection.link.consumed(self.number, size)
        self.connection.flush_soon()

    def _stored(self, failure: str | None) -> None:
        if failure is None:
            self.answer(b"")
        else:
            self.connection.refuse(self.number, failure)
        self.connection.flush_soon()


class GetExchange(Exchange):
    def __init__(self, connection: Connection, number: int, meta: dict[str, Any]) -> None:
        super().__init__(connection, number, meta)
        self._file = files.Outgoing(connection.resident, meta, self._piece, self._sent)

    def broken(self) -> None:
        self._file.abandon()

    def _piece(self, data: bytes) -> None:
        self._to_send = memoryview(bytes(self._to_send) + data)
        self.drained()
        self.connection.flush_soon()

    def drained(self) -> None:
        super().drained()
        if self._to_send:
            self._file.pause()
        else:
            self._file.proceed()

    def _sent(self, failure: str | None) -> None:
        if failure is None:
            self.answer(bytes(self._to_send))
        else:
            self.connection.refuse(self.number, failure)
        self.connection.flush_soon()


_EXCHANGES: dict[str, Callable[[Connection, int, dict[str, Any]], Exchange]] = {
    "hello": HelloExchange,
    "call": CallExchange,
    "query": QueryExchange,
    "acknowledge": AcknowledgeExchange,
    "cancel": CancelExchange,
    "put": PutExchange,
    "get": GetExchange,
    "end": EndExchange,
    "listen": ListenExchange,
    "environment": EnvironmentExchange,
}


class Connection:
    def __init__(self, resident: Resident, stream: socket.socket, closed: Callable[[Connection], None]) -> None:
        self.resident = resident
        self.link = Link(first=False)
        self._stream = stream
        self._fd = stream.fileno()
        self._closed = closed
        self._exchanges: dict[int, Exchange | Tunnel] = {}
        self._out = b""
        self._flushing = False
        self._open = True
        stream.setblocking(False)
        resident.loop.watch(self._fd, self._on_ready)
        self.flush_soon()

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        self.resident.loop.forget(self._fd)
        self._stream.close()
        exchanges, self._exchanges = self._exchanges, {}
        for exchange in exchanges.values():
            exchange.broken()
        self.resident.tunnels.dropped(self)
        self._closed(self)

    def attach(self, number: int, tunnel: Tunnel) -> None:
        """The channel was opened from here: what comes on it is the tunnel's."""
        self._exchanges[number] = tunnel
        self.flush_soon()

    def refuse(self, number: int, reason: str) -> None:
        self._exchanges.pop(number, None)
        self.link.reset(number, reason)

    def flush_soon(self) -> None:
        """Send at the end of this turn, so that all that came up in it leaves in one write."""
        if not self._flushing:
            self._flushing = True
            self.resident.loop.later(0, self._flush)

    def _on_ready(self, _events: int) -> None:
        try:
            data = self._stream.recv(_READ)
        except BlockingIOError:
            self._flush()
            return
        except OSError:
            data = b""
        try:
            if not data:
                self.close()
                return
            self.link.receive(data)
            self._handle_events()
        except FramingError:
            self.close()
            return
        self._flush()

    def _handle_events(self) -> None:
        while self._open:
            event = self.link.next_event()
            if event is None:
                return
            self._handle(event)

    def _handle(self, event: Event) -> None:
        if isinstance(event, Opened):
            self._opened(event)
            return
        if not isinstance(event, (Received, Ended, WasReset, Drained)):
            return
        exchange = self._exchanges.get(event.channel)
        if exchange is None:
            return
        try:
            if isinstance(event, Received):
                exchange.received(event.data)
            elif isinstance(event, Ended):
                exchange.ended()
            elif isinstance(event, Drained):
                exchange.drained()
            else:
                del self._exchanges[event.channel]
                exchange.broken()
        except Refused as e:
            exchange.broken()
            self.refuse(event.channel, str(e))
        except Exception as e:
            # The boundary of a request: a fault in one must not end the sandbox.
            traceback.print_exc()
            exchange.broken()
            self.refuse(event.channel, f"the hand failed: {type(e).__name__}")

    def _opened(self, event: Opened) -> None:
        try:
            meta = json.loads(event.meta)
            kind = _EXCHANGES[meta["op"]]
        except (ValueError, KeyError, TypeError):
            self.link.reset(event.channel, "this hand does not know what to do here")
            return
        try:
            self._exchanges[event.channel] = kind(self, event.channel, meta)
        except Refused as e:
            self.link.reset(event.channel, str(e))
        except OSError as e:
            self.link.reset(event.channel, f"the hand cannot start it: {os.strerror(e.errno or 0)}")

    def _flush(self) -> None:
        self._flushing = False
        if not self._open:
            return
        try:
            while True:
                if not self._out:
                    self._out = self.link.take()
                    self._handle_events()  # room that has just become free
                    if not self._out:
                        if not self.link.has_output():
                            break
                        continue
                sent = self._stream.send(self._out)
                self._out = self._out[sent:]
        except BlockingIOError:
            self.resident.loop.watch(self._fd, self._on_ready, read=True, write=True)
            return
        except OSError:
            self.close()
            return
        self.resident.loop.watch(self._fd, self._on_ready)
        self._drop_finished()

    def _drop_finished(self) -> None:
        for number in [number for number in self._exchanges if not self.link.knows(number)]:
            del self._exchanges[number]
