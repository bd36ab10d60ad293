"""What the stdio shim must remember of a conversation so that it survives the loss of its server. No I/O."""

from dataclasses import dataclass

from galley_server.mcp.lines import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    RequestId,
    answered_id,
    encoded,
    error_line,
    id_of,
    parsed,
)

MAX_IN_FLIGHT = 256

LOST = (
    "The Galley server stopped before it answered this call. It may or may not have taken effect: look with "
    "read_events, get_session or list_sessions before you repeat it. A repeat with the same idempotency_key is safe."
)
BUSY = f"More than {MAX_IN_FLIGHT} requests are waiting for an answer on this connection. Wait for some, then repeat."

# Asking these again changes nothing, so a new server is asked instead of telling the client that the old one is gone.
REPEATABLE = frozenset(
    {
        "initialize",
        "server/discover",
        "ping",
        "tools/list",
        "resources/list",
        "resources/read",
        "resources/templates/list",
        "prompts/list",
        "prompts/get",
        "completion/complete",
    }
)
# A stream of changes goes on with the next server. What changed meanwhile is lost; such events only say "look again".
_LISTEN = "subscriptions/listen"
_ACKNOWLEDGED = b"notifications/subscriptions/acknowledged"
_SUBSCRIPTION_ID = "io.modelcontextprotocol/subscriptionId"
_REPEATABLE_BYTES = 64 * 1024
_MAX_SUBSCRIPTIONS = 256
_REPLAYED_INITIALIZE = "galley-shim/initialize"
_SWALLOWED = "galley-shim/replayed"


@dataclass(frozen=True, slots=True)
class Forward:
    """Send this line on to the server."""

    line: bytes
    starts_server: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """Do not bother the server; this is what the client gets."""

    line: bytes


class Relay:
    """Follows one client's conversation, line by line.

    `from_client` and `from_server` see every line. After the server is lost, `lost` says what the client must be
    told, and `greeting` what the next server must be told before anything else: a client of the handshake era
    initialised once and will not do so again.
    """

    def __init__(self) -> None:
        self._waiting: dict[RequestId, bytes | None] = {}  # the line, where asking again is harmless
        self._initialize: dict[str, object] | None = None
        self._initialized = False
        self._log_level: dict[str, object] | None = None
        self._subscribed: dict[str, dict[str, object]] = {}
        self._swallow: set[RequestId] = set()
        self._listening: set[RequestId] = set()
        self._acknowledged: set[RequestId] = set()  # subscriptions of which the client knows that they stand
        self.answers = 0  # how many requests a server has answered

    @property
    def waiting(self) -> bool:
        """Whether the client waits for an answer; an open stream of changes is no reason to start a server."""
        return not self._listening.issuperset(self._waiting)

    def from_client(self, line: bytes) -> Forward | Answer:
        message = parsed(line)
        if message is None or not isinstance(message.get("method"), str):
            # An answer to the server, or no JSON-RPC at all: the server end has the words for that.
            return Forward(line, starts_server=message is None)
        method, id_ = str(message["method"]), id_of(message)
        if id_ is None:
            if method == "notifications/initialized":
                self._initialized = True
            elif method == "notifications/cancelled":
                self._cancelled(message)
            return Forward(line, starts_server=method == "notifications/initialized")
        if id_ in self._waiting:
            return Answer(error_line(id_, INVALID_REQUEST, "A request with this id is still waiting for its answer."))
        if len(self._waiting) >= MAX_IN_FLIGHT:
            return Answer(error_line(id_, INTERNAL_ERROR, BUSY))
        if method == _LISTEN:
            self._listening.add(id_)
        self._remember(method, message)
        repeatable = (method in REPEATABLE or method == _LISTEN) and len(line) <= _REPEATABLE_BYTES
        self._waiting[id_] = line if repeatable else None
        return Forward(line, starts_server=True)

    def from_server(self, line: bytes) -> bool:
        """Whether the client is to see this line."""
        id_ = answered_id(line)
        if id_ is None:
            return _ACKNOWLEDGED not in line or self._is_news(line)
        self.answers += 1
        if id_ in self._swallow:
            self._swallow.discard(id_)
            return False
        self.settled(id_)
        return True

    def settled(self, id_: RequestId | None) -> None:
        """Nobody waits for an answer to `id_` any more."""
        if id_ is not None:
            self._waiting.pop(id_, None)
            self._listening.discard(id_)
            self._acknowledged.discard(id_)

    def lost(self, unsent: frozenset[RequestId] = frozenset()) -> list[bytes]:
        """Errors for what the lost server may have been doing. `unsent` requests never reached it."""
        gone = [id_ for id_, line in self._waiting.items() if line is None and id_ not in unsent]
        for id_ in gone:
            del self._waiting[id_]
        self._swallow.clear()
        return [error_line(id_, INTERNAL_ERROR, LOST) for id_ in gone]

    def failed(self, reason: str) -> list[bytes]:
        """Errors for all that waits: no server could be reached."""
        gone = list(self._waiting)
        self._waiting.clear()
        self._listening.clear()
        self._acknowledged.clear()
        return [error_line(id_, INTERNAL_ERROR, reason) for id_ in gone]

    def greeting(self, unsent: frozenset[RequestId] = frozenset()) -> list[bytes]:
        """The lines that put a new server where the old one was, and ask again what is harmless to ask again."""
        lines: list[bytes] = []
        if self._initialize is not None and not self._initialize_waits():
            lines.append(self._quietly(_REPLAYED_INITIALIZE, self._initialize))
            if self._initialized:
                lines.append(encoded({"jsonrpc": "2.0", "method": "notifications/initialized"}))
            if self._log_level is not None:
                lines.append(self._quietly(f"{_SWALLOWED}/level", self._log_level))
            lines += [
                self._quietly(f"{_SWALLOWED}/{number}", subscribe)
                for number, subscribe in enumerate(self._subscribed.values())
            ]
        again = [line for id_, line in self._waiting.items() if line is not None and id_ not in unsent]
        return lines + [line + b"\n" for line in again]

    def _cancelled(self, message: dict[str, object]) -> None:
        """A server does not answer what was cancelled."""
        params = message.get("params")
        id_ = params.get("requestId") if isinstance(params, dict) else None
        self.settled(id_ if isinstance(id_, int | str) else None)

    def _is_news(self, line: bytes) -> bool:
        """Whether a subscription is acknowledged to the client for the first time."""
        params = (parsed(line) or {}).get("params")
        meta = params.get("_meta") if isinstance(params, dict) else None
        id_ = meta.get(_SUBSCRIPTION_ID) if isinstance(meta, dict) else None
        if not isinstance(id_, int | str) or id_ not in self._waiting:
            return True
        known = id_ in self._acknowledged
        self._acknowledged.add(id_)
        return not known

    def _initialize_waits(self) -> bool:
        """The client's own initialize has no answer yet: it is asked again itself, under its own id."""
        return self._initialize is not None and id_of(self._initialize) in self._waiting

    def _quietly(self, id_: str, message: dict[str, object]) -> bytes:
        self._swallow.add(id_)
        return encoded({**message, "id": id_})

    def _remember(self, method: str, message: dict[str, object]) -> None:
        params = message.get("params")
        uri = params.get("uri") if isinstance(params, dict) else None
        match method:
            case "initialize":
                self._initialize, self._initialized = message, False
                self._log_level = None
                self._subscribed.clear()
            case "logging/setLevel":
                self._log_level = message
            case "resources/subscribe" if isinstance(uri, str) and len(self._subscribed) < _MAX_SUBSCRIPTIONS:
                self._subscribed[uri] = message
            case "resources/unsubscribe" if isinstance(uri, str):
                self._subscribed.pop(uri, None)
            case _:
                pass
