"""Requests to servers that somebody else named: bounded in size and time, to public addresses, without redirects."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urlencode, urlsplit

import httpx2

from galley_vault_proxy.credentials.probe import complete
from galley_vault_proxy.credentials.urls import normal_url, without_query
from galley_vault_proxy.errors import InvalidRequest, Unreachable
from galley_vault_proxy.netguard import Netguard
from galley_vault_proxy.settings import is_loopback

MAX_BODY: Final = 256 * 1024
_CONNECT_S: Final = 5.0
_READ_S: Final = 10.0
_WHOLE_S: Final = 15.0


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """What a server answered. Does not print: it may hold tokens."""

    status: int
    headers: httpx2.Headers
    body: bytes
    whole: bool

    @property
    def media_type(self) -> str:
        return str(self.headers.get("content-type", "")).partition(";")[0].strip().lower()


class Outside:
    """Errors are AddressRefused and Unreachable, which hold the host and nothing of the answer."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client

    @classmethod
    @asynccontextmanager
    async def open(cls, guard: Netguard, *, ssl_context: ssl.SSLContext | None = None) -> AsyncIterator[Self]:
        async with httpx2.AsyncClient(
            transport=guard.transport(ssl_context=ssl_context, max_connections=32),
            trust_env=False,
            follow_redirects=False,
            timeout=httpx2.Timeout(_READ_S, connect=_CONNECT_S),
        ) as client:
            yield cls(client)

    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> Answer:
        return await self._ask("GET", url, {"accept": "application/json", **(headers or {})}, b"")

    async def post_form(self, url: str, form: Mapping[str, str], headers: Mapping[str, str] | None = None) -> Answer:
        fixed = {"accept": "application/json", "content-type": "application/x-www-form-urlencoded"}
        return await self._ask("POST", url, {**fixed, **(headers or {})}, urlencode(form).encode())

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Of an event stream only as much is read as holds an answer: it may never end."""
        return await self._ask("POST", url, headers, body, enough=complete)

    async def delete(self, url: str, headers: Mapping[str, str]) -> Answer:
        return await self._ask("DELETE", url, headers, b"")

    async def _ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        enough: Callable[[bytes], bool] | None = None,
    ) -> Answer:
        host = urlsplit(url).hostname or ""
        # Compressed, a small answer could become any size.
        fixed = {"user-agent": "galley-vault-proxy", "accept-encoding": "identity"}
        try:
            async with (
                asyncio.timeout(_WHOLE_S),
                self._client.stream(method, url, headers={**fixed, **headers}, content=body) as response,
            ):
                found, whole = await _read(response, enough)
                return Answer(response.status_code, response.headers, found, whole)
        except TimeoutError:
            raise Unreachable(f"{host} does not answer in time", error_code="timeout") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            # The text of the error may quote the other side.
            raise Unreachable(f"{host} does not answer ({type(error).__name__})", error_code="no_answer") from None


async def _read(response: httpx2.Response, enough: Callable[[bytes], bool] | None) -> tuple[bytes, bool]:
    found = bytearray()
    seen = 0
    async for part in response.aiter_raw():
        found += part
        if len(found) > MAX_BODY:
            return bytes(found[:MAX_BODY]), False
        if enough is None:
            continue
        # Each event is looked at once, however small the pieces that it comes in.
        end = max(found.rfind(b"\n\n", seen), found.rfind(b"\r\n\r\n", seen))
        if end >= 0:
            if enough(bytes(found[seen : end + 4])):
                return bytes(found), False
            seen = end
    return bytes(found), True


def endpoint(url: str, what: str) -> str:
    """Return a URL that secrets may be sent to: https, or http to this machine itself. Raises InvalidRequest."""
    try:
        normal_url(url)
        parts = urlsplit(url)
        safe = parts.scheme.lower() == "https" or is_loopback(parts.hostname or "")
    except ValueError:
        raise InvalidRequest(f"{what} is not an http or https URL without user name and fragment") from None
    if not safe:
        raise InvalidRequest(f"{what} is {without_query(url)[:200]!r}: OAuth needs https (http only to loopback)")
    return url
