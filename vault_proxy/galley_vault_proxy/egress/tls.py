"""TLS over a stream that has been read already: the hello was looked at before it was known who would answer it.

asyncio's own TLS can only begin on bytes that nobody has read, so the state machine of `ssl` is driven here, between
two memory buffers, and the sockets stay plain. One class for both sides.
"""

import ssl
from contextlib import suppress
from typing import Final

from galley_vault_proxy.egress.stream import Stream

_READ: Final = 64 * 1024
_AT_ONCE: Final = 256 * 1024
_CHUNK: Final = 128 * 1024


class TlsFailed(OSError):
    """The other side and we did not come to terms; `reason` is OpenSSL's word for why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Tls:
    """A stream inside another one. `handshake` comes before anything else."""

    def __init__(
        self, below: Stream, context: ssl.SSLContext, *, server_hostname: str | None = None, first: bytes = b""
    ) -> None:
        """`first`: what was read of the stream below already. The name makes it the client's side."""
        self._below = below
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._incoming.write(first)
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_hostname is None, server_hostname=server_hostname
        )
        self._at_end = False

    async def handshake(self) -> None:
        """Raises TlsFailed, OSError."""
        while True:
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except ssl.SSLCertVerificationError as error:
                await self._flush()
                raise TlsFailed(error.verify_message) from None
            except ssl.SSLError as error:
                await self._flush()  # the alert says it to the other side
                raise TlsFailed(_reason(error)) from None
            else:
                await self._flush()
                return

    async def read(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        while size < _AT_ONCE and not self._at_end:
            try:
                part = self._object.read(_READ)
            except ssl.SSLWantReadError:
                # Answers of the protocol's own, like those to a renewed key.
                await self._flush()
                if parts:
                    break
                await self._fill()
                continue
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                # Whether the message is whole, its framing says: many servers just close.
                self._at_end = True
                break
            except ssl.SSLError as error:
                raise TlsFailed(_reason(error)) from None
            if not part:
                self._at_end = True
                break
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                written = self._object.write(view[:_CHUNK])
            except ssl.SSLError as error:
                raise TlsFailed(_reason(error)) from None
            view = view[written:]
            await self._flush()

    async def end(self) -> None:
        with suppress(ssl.SSLError):  # it wants the other side's farewell, for which nobody waits
            self._object.unwrap()
        await self._flush()
        await self._below.end()

    async def _fill(self) -> None:
        data = await self._below.read()
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        # Taken out and handed down in one step, so that two tasks cannot put records in another order.
        if self._outgoing.pending:
            await self._below.write(self._outgoing.read())


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or type(error).__name__).replace("_", " ").lower()
