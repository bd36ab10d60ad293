"""A strict authorization server and an MCP server that it protects, for the vault proxy to log in to.

What a real server may refuse, this one refuses; a refresh token that is used twice ends the whole grant.
"""

import asyncio
import base64
import hashlib
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote_plus, urlencode

import httpx2
from galley_vault_proxy.http.serving import serve
from galley_vault_proxy.secret import Secret
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route


@dataclass
class Rules:
    """What the servers of a test are like."""

    issuer_path: str = ""
    metadata: str = "oauth"  # where: "oauth", "openid", "openid-appended"
    methods: tuple[str, ...] = ("none", "client_secret_basic", "client_secret_post")
    challenge_methods: tuple[str, ...] | None = ("S256",)
    registers: bool = True
    documents: bool = False
    iss: str | None = "right"  # "right", "wrong", None (not advertised, not sent), "missing" (advertised, not sent)
    consent: str = "allow"
    rotates: bool = True
    expires_in: int | None = 3600
    form_answers: bool = False
    # The MCP server.
    era: str = "modern"
    gate: str = "all"  # or "tools": greets everybody
    advertises: bool = True
    resource: str | None = None
    scope: str | None = None
    events: bool = False


@dataclass
class Client:
    client_id: str
    redirect_uris: list[str]
    method: str
    secret: str | None


@dataclass
class Grant:
    client_id: str
    resource: str
    access: set[str] = field(default_factory=set)
    refresh: str | None = None


class AuthServer:
    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.base = ""
        self.resource = ""
        self.clients: dict[str, Client] = {}
        self.codes: dict[str, dict[str, str]] = {}
        self.grants: list[Grant] = []
        self.token_requests: list[dict[str, str]] = []
        self.registrations: list[dict[str, Any]] = []
        self.asked: list[dict[str, str]] = []
        self.reused = 0
        self.faults: list[Response] = []
        self.hold: asyncio.Event | None = None
        self.arrived = asyncio.Event()

    @property
    def issuer(self) -> str:
        return self.base + self.rules.issuer_path

    def app(self) -> Starlette:
        path = self.rules.issuer_path
        place = {
            "oauth": f"/.well-known/oauth-authorization-server{path}",
            "openid": f"/.well-known/openid-configuration{path}",
            "openid-appended": f"{path}/.well-known/openid-configuration",
        }[self.rules.metadata]
        return Starlette(
            routes=[
                Route(place, self._metadata),
                Route("/authorize", self._authorize),
                Route("/token", self._token, methods=["POST"]),
                Route("/register", self._register, methods=["POST"]),
            ]
        )

    def is_good(self, token: str) -> bool:
        return any(token in grant.access for grant in self.grants)

    def add(self, client: Client, *, access: str, refresh: str) -> Grant:
        self.clients[client.client_id] = client
        grant = Grant(client.client_id, self.resource, {access}, refresh)
        self.grants.append(grant)
        return grant

    def revoke_access(self) -> None:
        for grant in self.grants:
            grant.access.clear()

    async def _metadata(self, request: Request) -> Response:
        rules = self.rules
        found: dict[str, Any] = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.base}/authorize?tenant=7",
            "token_endpoint": f"{self.base}/token",
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "token_endpoint_auth_methods_supported": list(rules.methods),
            "scopes_supported": ["read", "write", "offline_access"],
            "client_id_metadata_document_supported": rules.documents,
            "authorization_response_iss_parameter_supported": rules.iss is not None,
        }
        if rules.challenge_methods is not None:
            found["code_challenge_methods_supported"] = list(rules.challenge_methods)
        if rules.registers:
            found["registration_endpoint"] = f"{self.base}/register"
        return JSONResponse(found)

    async def _register(self, request: Request) -> Response:
        asked = await request.json()
        self.registrations.append(asked)
        method = asked["token_endpoint_auth_method"]
        assert method in self.rules.methods
        assert asked["grant_types"] == ["authorization_code", "refresh_token"]
        secret = None if method == "none" else "cs+planted/" + secrets.token_urlsafe(12)
        client = Client(f"client:{secrets.token_hex(4)}", asked["redirect_uris"], method, secret)
        self.clients[client.client_id] = client
        return JSONResponse(
            {**asked, "client_id": client.client_id, "client_secret": secret, "logo_uri": ""}, status_code=201
        )

    async def _authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        self.asked.append(asked)
        client = self.clients.get(asked.get("client_id", ""))
        if client is None or asked.get("redirect_uri") not in client.redirect_uris:
            return PlainTextResponse("unknown client or redirect_uri", 400)
        right = {"response_type": "code", "code_challenge_method": "S256", "resource": self.resource, "tenant": "7"}
        wrong = {name for name, value in right.items() if asked.get(name) != value}
        if wrong or len(asked.get("code_challenge", "")) != 43 or not asked.get("state"):
            return PlainTextResponse(f"wrong: {wrong}", 400)
        back = {"state": asked["state"]}
        if self.rules.iss in ("right", "wrong"):
            back["iss"] = self.issuer if self.rules.iss == "right" else "https://other.example"
        if self.rules.consent == "deny":
            back |= {"error": "access_denied", "error_description": "<script>alert(1)</script>"}
        else:
            code = "code-planted-" + secrets.token_urlsafe(12)
            self.codes[code] = asked
            back["code"] = code
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode(back)}", 302)

    async def _token(self, request: Request) -> Response:
        raw = (await request.body()).decode()
        form = dict(parse_qsl(raw, strict_parsing=True))
        self.token_requests.append(form)
        self.arrived.set()
        if self.hold is not None:
            await self.hold.wait()
        if self.faults:
            return self.faults.pop(0)
        client = self._client(request, form)
        if client is None:
            return JSONResponse({"error": "invalid_client", "echo": raw}, status_code=401)
        if form.get("grant_type") == "refresh_token":
            return self._refreshed(client, form)
        return self._redeemed(client, form)

    def _client(self, request: Request, form: dict[str, str]) -> Client | None:
        header = request.headers.get("authorization")
        for client in self.clients.values():
            if client.method == "client_secret_basic":
                pair = f"{quote_plus(client.client_id)}:{quote_plus(client.secret or '')}"
                if header == "Basic " + base64.b64encode(pair.encode()).decode() and "client_secret" not in form:
                    return client
            elif header is None and form.get("client_id") == client.client_id:
                return client if form.get("client_secret") == client.secret else None
        return None

    def _redeemed(self, client: Client, form: dict[str, str]) -> Response:
        asked = self.codes.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        if (
            asked is None
            or asked["client_id"] != client.client_id
            or asked["redirect_uri"] != form.get("redirect_uri")
            or asked["resource"] != form.get("resource")
            or asked["code_challenge"] != base64.urlsafe_b64encode(digest).decode().rstrip("=")
        ):
            return JSONResponse({"error": "invalid_grant", "echo": form}, status_code=400)
        grant = Grant(client.client_id, asked["resource"])
        self.grants.append(grant)
        return self._tokens(grant, new=True)

    def _refreshed(self, client: Client, form: dict[str, str]) -> Response:
        for grant in self.grants:
            if grant.refresh == form.get("refresh_token") and grant.client_id == client.client_id:
                return self._tokens(grant, new=self.rules.rotates)
        self.reused += 1
        self.grants.clear()
        return JSONResponse({"error": "invalid_grant", "echo": form}, status_code=400)

    def _tokens(self, grant: Grant, *, new: bool) -> Response:
        access = "at-planted-" + secrets.token_urlsafe(12)
        grant.access.add(access)
        found: dict[str, Any] = {"access_token": access, "token_type": "bearer", "scope": "read"}
        if self.rules.expires_in is not None:
            found["expires_in"] = self.rules.expires_in
        if new:
            grant.refresh = found["refresh_token"] = "rt-planted-" + secrets.token_urlsafe(12)
        if self.rules.form_answers:
            return Response(urlencode(found), media_type="application/x-www-form-urlencoded")
        return JSONResponse(found)


class McpServer:
    """As little of MCP as a probe needs, in one era."""

    def __init__(self, rules: Rules, auth: AuthServer) -> None:
        self.rules = rules
        self.auth = auth
        self.base = ""
        self.seen: list[tuple[str, str | None]] = []
        self.ended = 0
        self.fault: Response | None = None

    @property
    def url(self) -> str:
        return f"{self.base}/mcp"

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/mcp", self._mcp, methods=["POST"]),
                Route("/mcp", self._end, methods=["DELETE"]),
                Route("/.well-known/oauth-protected-resource/mcp", self._metadata),
            ]
        )

    async def _metadata(self, request: Request) -> Response:
        if not self.rules.advertises:
            return PlainTextResponse("no", 404)
        resource = self.rules.resource or self.url
        return JSONResponse({"resource": resource, "authorization_servers": [self.auth.issuer]})

    async def _end(self, request: Request) -> Response:
        self.ended += 1
        return Response(status_code=204)

    async def _mcp(self, request: Request) -> Response:
        message = await request.json()
        method = message["method"]
        header = request.headers.get("authorization")
        self.seen.append((method, header))
        if self.fault is not None:
            return self.fault
        gated = self.rules.gate == "all" or method == "tools/list"
        if gated and not (header and self.auth.is_good(header.removeprefix("Bearer "))):
            scope = f', scope="{self.rules.scope}"' if self.rules.scope else ""
            place = f'resource_metadata="{self.base}/.well-known/oauth-protected-resource/mcp"'
            challenge = f"Bearer {place}{scope}" if self.rules.advertises else "Bearer"
            return JSONResponse(
                {"error": "invalid_token", "given": header}, 401, headers={"www-authenticate": challenge}
            )
        if (method == "server/discover") != (self.rules.era == "modern") and method in (
            "server/discover",
            "initialize",
        ):
            refusal = {"code": -32601, "message": "no such method"}
            return JSONResponse({"jsonrpc": "2.0", "id": message["id"], "error": refusal}, 400)
        if "id" not in message:
            return Response(status_code=202)
        result: dict[str, Any] = {"tools": []}
        headers = {}
        if method == "initialize":
            result = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "x", "version": "1"}}
            headers["mcp-session-id"] = "session-1"
        answer = {"jsonrpc": "2.0", "id": message["id"], "result": result}
        if self.rules.events:
            body = f": hello\n\nevent: message\ndata: {json.dumps(answer)}\n\n"
            return Response(body, media_type="text/event-stream", headers=headers)
        return JSONResponse(answer, headers=headers)


@dataclass(frozen=True)
class Servers:
    auth: AuthServer
    mcp: McpServer

    async def consent(self, url: str) -> httpx2.Response:
        """Be the browser: open the URL, agree, and go where one is sent to."""
        async with httpx2.AsyncClient(follow_redirects=True, trust_env=False) as browser:
            return await browser.get(url)

    async def sent_to(self, url: str) -> str:
        """Where the browser is sent to after consent."""
        async with httpx2.AsyncClient(trust_env=False) as browser:
            return str((await browser.get(url)).headers["location"])


@asynccontextmanager
async def servers(rules: Rules | None = None) -> AsyncIterator[Servers]:
    rules = rules or Rules()
    auth = AuthServer(rules)
    mcp = McpServer(rules, auth)
    async with AsyncExitStack() as stack:
        for server in (auth, mcp):
            address = await stack.enter_async_context(
                serve(server.app(), host="127.0.0.1", port=0, key=Secret("k" * 20), closing=asyncio.Event())
            )
            server.base = address.url
        auth.resource = rules.resource or mcp.url
        yield Servers(auth, mcp)
