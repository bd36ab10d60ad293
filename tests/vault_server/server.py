"""The test server as a program and as a thing to hold in a test: HTTP, the audit log, and troubles on demand."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.vault_server.answers import Failure, Json, Reply, Unsupported, only, seconds
from tests.vault_server.engines import DeletedVersion
from tests.vault_server.namespace import Namespace

T = TypeVar("T")

VERSION: Final = "2.6.2"
_METHODS: Final = {"GET": "read", "LIST": "list", "DELETE": "delete", "POST": "update", "PUT": "update"}
UNSEAL_KEY: Final = "0f" * 33
_MAX_BODY: Final = 1 << 20

# What is wrong with the server as a whole. `audit_full`: health says that all is well.
Trouble: TypeAlias = Literal["sealed", "uninitialised", "standby", "no_leader", "redirect", "audit_full", "quota"]


@dataclass(frozen=True, slots=True)
class Seen:
    """One line of the audit log."""

    method: str
    path: str
    session: str | None
    namespace: str
    status: int
    body: Json
    token: str | None

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class TestVault:
    """Every attribute may be changed at any time; what touches the engines' state goes through `run`."""

    __test__ = False

    trouble: Trouble | None = None
    # Answers wait this long; those whose path contains a word of `slow` only, if any is given.
    delay_s: float = 0.0
    slow: tuple[str, ...] = ()
    # The next so many answers are cut off: the request is done, and nobody hears of it.
    deaf: int = 0
    # Statuses for the next requests, whatever they are.
    statuses: list[int] = field(default_factory=list)
    version: str = VERSION
    seen: list[Seen] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self._shift = 0.0
        self.namespaces: dict[str, Namespace] = {}
        self.namespaces[""] = Namespace(self.clock, self.namespaces.values)
        self.root_token = self.namespaces[""].tokens.root().id
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def root(self) -> Namespace:
        return self.namespaces[""]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def clock(self) -> float:
        return time.time() + self._shift

    def advance(self, by_s: float) -> None:
        """Let time pass at the server; what has expired is gone when this returns."""

        def work() -> None:
            self._shift += by_s
            for namespace in self.namespaces.values():
                namespace.tokens.expire_leases()

        self.run(work)

    def run(self, work: Callable[[], T]) -> T:
        """Run on the server's own thread."""
        assert self._loop is not None

        async def carry() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(carry(), self._loop).result(timeout=5)

    def add_namespace(self, name: str) -> str:
        """Return a root token that lives inside it."""

        def work() -> str:
            self.namespaces[name] = Namespace(self.clock, self.namespaces.values, self.root)
            return self.namespaces[name].tokens.root().id

        return self.run(work)

    def lines(self) -> list[str]:
        return [seen.line for seen in self.seen]

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self._serve, methods=[*_METHODS])])

    async def _serve(self, request: Request) -> Response:
        self._loop = asyncio.get_running_loop()
        path = request.url.path.removeprefix("/v1/")
        body = await self._body(request)
        response = await self._answer(request, path, body)
        name = request.headers.get("x-vault-namespace", "").strip("/")
        session = request.headers.get("x-galley-session")
        token = request.headers.get("x-vault-token")
        self.seen.append(Seen(request.method, path, session, name, response.status_code, body, token))
        if self.delay_s and (not self.slow or any(word in path for word in self.slow)):
            await asyncio.sleep(self.delay_s)
        if self.deaf:
            self.deaf -= 1
            return _CutOff()
        return response

    async def _body(self, request: Request) -> Json:
        raw = await request.body()
        if len(raw) > _MAX_BODY:
            raise Unsupported("a body of more than 1 MiB")
        if not raw:
            return {}
        parsed = json.loads(raw)
        if not isinstance(parsed, dict):
            raise Unsupported("a body that is no object")
        return parsed

    async def _answer(self, request: Request, path: str, body: Json) -> Response:
        try:
            return await self._reply(request, path, body)
        except Failure as failure:
            return JSONResponse({"errors": list(failure.errors)}, failure.status)
        except DeletedVersion as deleted:
            return JSONResponse(deleted.reply.body(), 404)
        except Unsupported as error:
            self.unsupported.append(f"{request.method} {path}: {error}")
            return JSONResponse({"errors": [f"the test server does not know this: {error}"]}, 418)

    async def _reply(self, request: Request, path: str, body: Json) -> Response:
        if request.headers.get("x-vault-request") != "true":
            raise Unsupported("a request without X-Vault-Request")
        if request.headers.get("accept-encoding") != "identity":
            raise Unsupported("a request that takes compressed answers")
        if path == "sys/health":
            return self._health(request)
        if path in ("sys/init", "sys/unseal", "sys/seal-status"):
            return self._opening(request.method, path, body)
        if self.statuses:
            return JSONResponse({"errors": ["internal error"]}, self.statuses.pop(0))
        troubled = self._troubled()
        if troubled is not None:
            return troubled
        name = request.headers.get("x-vault-namespace", "").strip("/")
        namespace = self.namespaces.get(name)
        if namespace is None:
            raise Failure(404, "namespace not found")
        if path.startswith("sys/namespaces/"):
            return self._new_namespace(request, path.removeprefix("sys/namespaces/"))
        reply = await namespace.answer(_METHODS[request.method], path, body, request.headers.get("x-vault-token"))
        return self._shown(self._wrapped(namespace, request, path, reply))

    def _wrapped(self, namespace: Namespace, request: Request, path: str, reply: Reply) -> Reply:
        ttl = request.headers.get("x-vault-wrap-ttl")
        body = reply.body()
        if ttl is None or body is None:
            return reply
        return Reply(wrap_info=namespace.tokens.wrap(body, path, seconds(ttl)))

    def _shown(self, reply: Reply) -> Response:
        body = reply.body()
        return Response(status_code=204) if body is None else JSONResponse(body)

    def _health(self, request: Request) -> Response:
        if "x-vault-namespace" in request.headers:
            raise Failure(400, "operation unavailable in namespaces")
        status = {"sealed": 503, "uninitialised": 501, "standby": 429, "no_leader": 429}.get(self.trouble or "", 200)
        return JSONResponse(
            {
                "initialized": self.trouble != "uninitialised",
                "sealed": self.trouble == "sealed",
                "standby": status == 429,
                "version": self.version,
                "cluster_name": "test",
            },
            status,
        )

    def _opening(self, method: str, path: str, body: Json) -> Response:
        """Initialising and unsealing, by one key."""
        match method, path:
            case "GET", "sys/seal-status":
                pass
            case "PUT", "sys/init":
                if self.trouble != "uninitialised":
                    raise Failure(400, "Vault is already initialized")
                if body != {"secret_shares": 1, "secret_threshold": 1}:
                    raise Unsupported("more than one key")
                self.trouble = "sealed"
                return JSONResponse({"keys": [UNSEAL_KEY], "keys_base64": [], "root_token": self.root_token})
            case "PUT", "sys/unseal":
                only(body, "key")
                if body.get("key") != UNSEAL_KEY:
                    raise Failure(400, "'key' must be a valid hex or base64 string")
                self.trouble = None if self.trouble == "sealed" else self.trouble
            case _:
                raise Unsupported(f"{method} {path}")
        sealed = self.trouble in ("sealed", "uninitialised")
        return JSONResponse({"initialized": self.trouble != "uninitialised", "sealed": sealed, "t": 1, "n": 1})

    def _troubled(self) -> Response | None:
        match self.trouble:
            case "sealed" | "uninitialised":
                return JSONResponse({"errors": ["Vault is sealed"]}, 503)
            case "audit_full":
                return JSONResponse({"errors": ["internal error"]}, 500)
            case "no_leader":
                error = "local node not active but active cluster node not found"
                return JSONResponse({"errors": [error]}, 500)
            case "redirect":
                return Response(status_code=307, headers={"Location": "http://127.0.0.1:1/v1/elsewhere"})
            case "quota":
                return JSONResponse({"errors": ["request path: rate limit quota exceeded"]}, 429)
            case "standby" | None:
                return None

    def _new_namespace(self, request: Request, name: str) -> Response:
        token = self.root.tokens.living(request.headers.get("x-vault-token", ""))
        if request.method != "POST" or token is None or "root" not in token.policies:
            raise Unsupported("a namespace is made by root, with POST")
        self.namespaces.setdefault(name, Namespace(self.clock, self.namespaces.values, self.root))
        return self._shown(Reply(data={"path": f"{name}/"}))


class _CutOff(Response):
    """An answer that never comes: the connection ends instead."""

    async def __call__(self, scope: object, receive: object, send: object) -> None:
        raise ConnectionAbortedError("as the test asked")


class Running:
    """A test server that can be killed and started again, state and port kept."""

    def __init__(self, port: int = 0) -> None:
        self.vault = TestVault(port=port)
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        # With the protocol named, asyncio turns the delaying of small packets off.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.vault.port))
        listener.listen(128)
        self.vault.port = listener.getsockname()[1]
        # The other parser knows no LIST.
        config = uvicorn.Config(self.vault.app(), http="h11", log_level="critical", lifespan="off")
        server = self._server = uvicorn.Server(config)
        begun = threading.Event()

        async def serve() -> None:
            self.vault._loop = asyncio.get_running_loop()
            begun.set()
            await server.serve(sockets=[listener])

        self._thread = threading.Thread(target=lambda: asyncio.run(serve()), name="vault-server", daemon=True)
        self._thread.start()
        if not begun.wait(10):
            raise RuntimeError("the Vault test server did not start")

    def kill(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.should_exit = self._server.force_exit = True
            self._thread.join(10)
            self._server = self._thread = None


@contextmanager
def running(port: int = 0) -> Iterator[Running]:
    """The server on a thread of its own, accepting requests inside the block."""
    server = Running(port)
    server.start()
    try:
        yield server
    finally:
        server.kill()
