"""A login: from the URL that a person opens to the credential that is stored. Nothing of it reaches a sandbox.

What begins is bound to what ends by `state`, which is used once, ends soon, and is kept only as a hash; the verifier
and the client's secret are sealed by the secret store.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import secrets
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from galley_vault_proxy.audit import AuditLine
from galley_vault_proxy.credentials import material
from galley_vault_proxy.credentials import rows as credential_rows
from galley_vault_proxy.credentials.credentials import Credentials
from galley_vault_proxy.credentials.rows import Stored
from galley_vault_proxy.credentials.shapes import (
    Credential,
    EndpointAuth,
    EndpointAuthShown,
    OAuthShown,
    RefreshShown,
)
from galley_vault_proxy.credentials.urls import server_key
from galley_vault_proxy.credentials.vaults import Ground, usable
from galley_vault_proxy.errors import Conflict, InvalidRequest, NotFound, RateLimited, RequestError, Unreachable
from galley_vault_proxy.ids import new_id
from galley_vault_proxy.oauth import rows
from galley_vault_proxy.oauth.discovery import Found, Identity, discover, identify
from galley_vault_proxy.oauth.outside import Outside
from galley_vault_proxy.oauth.rows import Login
from galley_vault_proxy.oauth.tokens import Client, Refused, Tokens, ask, error_word
from galley_vault_proxy.secret import Secret

CALLBACK: Final = "/oauth/callback"
LASTS: Final = timedelta(minutes=10)
_MOST_OPEN: Final = 1000
_WHOLE_S: Final = 60.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a login is for. `client_id` is given where we are registered already."""

    vault_id: str
    mcp_server_url: str
    scope: str | None = None
    client_id: str | None = None
    client_secret: Secret | None = None
    display_name: str | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """`url` is for one person's browser, and holds the state: it is in this answer and nowhere else."""

    login: Login
    url: str


@dataclass(frozen=True, slots=True)
class Ended:
    """How a callback went. `message` is for people and safe to show."""

    ok: bool
    message: str
    login_id: str | None = None


class Logins:
    """`base_url` says under which URL people reach this proxy."""

    def __init__(self, ground: Ground, credentials: Credentials, outside: Outside, base_url: Callable[[], str]) -> None:
        self._ground = ground
        self._credentials = credentials
        self._outside = outside
        self._base_url = base_url

    @property
    def base_url(self) -> str:
        return self._base_url().rstrip("/")

    @property
    def redirect_uri(self) -> str:
        return f"{self.base_url}{CALLBACK}"

    @property
    def now(self) -> datetime:
        return self._ground.clock()

    async def begin(self, wanted: Wanted) -> Begun:
        """Find who authorises, and make the URL to open there. Nothing is stored but the login.

        Raises NotFound, InvalidRequest, Conflict, RateLimited, AddressRefused, Unreachable, StoreUnavailable.
        """
        await self._require_place(wanted)
        try:
            async with asyncio.timeout(_WHOLE_S):
                found = await discover(self._outside, wanted.mcp_server_url, scope=wanted.scope)
                identity = await self._identity(wanted, found)
        except TimeoutError:
            host = urlsplit(wanted.mcp_server_url).hostname
            raise Unreachable(f"{host} and its authorization server take too long to answer") from None
        state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(64)
        redirect_uri = self.redirect_uri
        kept = {
            "verifier": verifier,
            "client_id": identity.client_id,
            "client_auth": identity.auth,
            "client_secret": None if identity.secret is None else identity.secret.reveal(),
            "token_endpoint": found.server.token_endpoint,
            "resource": found.resource,
            "scope": found.scope,
            "redirect_uri": redirect_uri,
            "iss_required": bool(found.server.authorization_response_iss_parameter_supported),
            "display_name": wanted.display_name,
        }
        now = self._ground.clock()
        login = Login(
            id=new_id("consent"),
            vault_id=wanted.vault_id,
            mcp_server_url=wanted.mcp_server_url,
            issuer=found.server.issuer,
            sealed=await self._ground.store.seal(wanted.vault_id, json.dumps(kept).encode()),
            status="pending",
            error=None,
            credential_id=None,
            created_at=now,
            expires_at=now + LASTS,
        )
        self._note(login, "allow", "login_begun", None)
        if not await self._ground.state.write(lambda db: rows.add_login(db, login, _hash(state), limit=_MOST_OPEN)):
            raise RateLimited("too many logins are open: wait until some have ended", retry_after=60)
        return Begun(login, _consent_url(found, identity, state, verifier, redirect_uri))

    async def retrieve(self, login_id: str) -> Login:
        found = await self._ground.state.read(lambda db: rows.login(db, login_id))
        if found is None:
            raise NotFound(f"{login_id[:80]} is not a login of this proxy, or ended more than a day ago")
        return found

    async def redirected(self, login_id: str, url: str) -> Ended:
        """A person without a way to our callback brings the URL that their browser could not open.

        Raises NotFound, InvalidRequest when it is not this login's.
        """
        login = await self.retrieve(login_id)
        sent, ours = urlsplit(url), urlsplit(self.redirect_uri)
        query = dict(parse_qsl(sent.query, max_num_fields=50))
        if sent.path != ours.path or "state" not in query:
            raise InvalidRequest(f"url: give the whole address that the browser was sent to: {self.redirect_uri}?...")
        return await self.ended(query, only=login.id)

    async def ended(self, query: Mapping[str, str], *, only: str | None = None) -> Ended:
        """The browser is back. Whatever it brings, a state is good for one try."""
        state = query.get("state", "")
        if only is not None and not await self._is_of(only, state):
            raise InvalidRequest("url: this address belongs to another login")
        now = self._ground.clock()
        login = await self._ground.state.write(lambda db: rows.take_login(db, _hash(state), now))
        if login is None:
            return Ended(False, "This link has been used already, or has expired. Begin the login again.")
        try:
            async with asyncio.timeout(_WHOLE_S):
                credential_id = await self._exchange(login, query)
        except _Failed as failed:
            return await self._failed(login, failed.word, failed.message)
        except TimeoutError:
            return await self._failed(login, "timeout", "It took too long. Begin the login again.")
        except RequestError as error:
            return await self._failed(login, error.error_code or error.type, error.message)
        await self._ground.state.write(lambda db: rows.end_login(db, login.id, credential_id=credential_id, error=None))
        self._note(login, "allow", "login_completed", credential_id)
        host = urlsplit(login.mcp_server_url).hostname
        return Ended(True, f"{host} is connected. You can close this page.", login.id)

    async def _exchange(self, login: Login, query: Mapping[str, str]) -> str:
        kept = json.loads(await self._ground.store.unseal(login.vault_id, login.sealed))
        _check_issuer(query.get("iss"), login.issuer, required=kept["iss_required"])
        if "error" in query:
            word = error_word(query["error"])
            raise _Failed(word, f"{urlsplit(login.issuer).hostname} did not authorise this ({word}).")
        code = query.get("code", "")
        if not code or len(code) > 8192:
            raise _Failed("no_code", "The authorization server sent no code.")
        secret = Secret(kept["client_secret"]) if kept["client_secret"] else None
        client = Client(kept["token_endpoint"], kept["client_id"], kept["client_auth"], secret)
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": kept["redirect_uri"],
            "code_verifier": kept["verifier"],
            "resource": kept["resource"],
        }
        now = self._ground.clock()
        tokens = await ask(self._outside, client, form, now=now, hide=(Secret(code), Secret(kept["verifier"])))
        if isinstance(tokens, Refused):
            logger.warning("%s: the token endpoint refused the code: %s", login.id, tokens.error)
            raise _Failed(tokens.error, f"{urlsplit(login.issuer).hostname} did not give a token ({tokens.error}).")
        return await self._store(login, client, tokens, kept)

    async def _store(self, login: Login, client: Client, tokens: Tokens, kept: Mapping[str, str | None]) -> str:
        """A new credential, or the new content of the one that this server has in the vault already."""
        now = self._ground.clock()
        fields = material.present(tokens.fields(now))
        if client.secret is not None:
            fields[material.CLIENT] = client.secret
        auth = OAuthShown(
            mcp_server_url=login.mcp_server_url,
            expires_at=tokens.expires_at,
            refresh=None if tokens.refresh is None else _refresh(client, kept),
        )
        stored = await self._ground.state.read(lambda db: self._holder(db, login.vault_id, login.mcp_server_url))
        if stored is not None:
            await self._credentials.replace(stored, auth, fields)
            return stored.shown.id
        credential = Credential(
            id=new_id("vcrd"),
            vault_id=login.vault_id,
            auth=auth,
            display_name=kept["display_name"],
            metadata={},
            created_at=now,
            updated_at=now,
            archived_at=None,
        )
        await self._credentials.add(credential, fields)
        return credential.id

    async def _require_place(self, wanted: Wanted) -> None:
        def look(db: sqlite3.Connection) -> None:
            usable(db, wanted.vault_id)
            self._holder(db, wanted.vault_id, wanted.mcp_server_url)

        await self._ground.state.read(look)

    def _holder(self, db: sqlite3.Connection, vault_id: str, url: str) -> Stored | None:
        """The credential that this login would renew. Raises Conflict if it is one of another kind."""
        holder = credential_rows.holder(db, vault_id, f"mcp {server_key(url)}")
        stored = None if holder is None else credential_rows.credential(db, holder)
        if stored is not None and not isinstance(stored.shown.auth, OAuthShown):
            raise Conflict(
                f"mcp_server_url: {stored.shown.id} of this vault is a '{stored.shown.auth.type}' for it: "
                "archive that one first",
                error_code="duplicate_credential",
            )
        return stored

    async def _identity(self, wanted: Wanted, found: Found) -> Identity:
        if wanted.client_id is None:
            return await identify(
                self._outside,
                found.server,
                base_url=self.base_url,
                redirect_uri=self.redirect_uri,
                scope=found.scope,
            )
        auth: EndpointAuth = "none"
        if wanted.client_secret is not None:
            offered = found.server.token_endpoint_auth_methods_supported or ["client_secret_basic"]
            auth = "client_secret_basic" if "client_secret_basic" in offered else "client_secret_post"
        return Identity(wanted.client_id, auth, wanted.client_secret)

    async def _is_of(self, login_id: str, state: str) -> bool:
        known = await self._ground.state.read(lambda db: rows.state_hash(db, login_id))
        return known is not None and hmac.compare_digest(known, _hash(state))

    async def _failed(self, login: Login, word: str, message: str) -> Ended:
        await self._ground.state.write(lambda db: rows.end_login(db, login.id, credential_id=None, error=word))
        self._note(login, "deny", f"login_{error_word(word)}"[:64], None)
        return Ended(False, message, login.id)

    def _note(self, login: Login, decision: str, reason: str, credential_id: str | None) -> None:
        self._ground.audit.record(
            AuditLine(
                "credential.write",
                "allow" if decision == "allow" else "deny",
                reason=reason,
                who="service",
                vault_id=login.vault_id,
                credential_id=credential_id,
                host=urlsplit(login.mcp_server_url).hostname,
            )
        )


class _Failed(Exception):
    def __init__(self, word: str, message: str) -> None:
        super().__init__(word)
        self.word = word
        self.message = message


def _check_issuer(given: str | None, expected: str, *, required: bool) -> None:
    """RFC 9207: an answer of another server than the one asked is a mix-up, made by somebody."""
    if given is not None and given != expected:
        raise _Failed("iss_mismatch", "The answer comes from another authorization server than the one asked.")
    if given is None and required:
        raise _Failed("iss_missing", "The answer does not say which authorization server it comes from.")


def _refresh(client: Client, kept: Mapping[str, str | None]) -> RefreshShown:
    return RefreshShown(
        client_id=client.client_id,
        token_endpoint=client.token_endpoint,
        token_endpoint_auth=EndpointAuthShown(type=client.auth),
        resource=kept["resource"],
        # Left out of a refresh it means: the same as before, which is never too much.
        scope=None,
    )


def _consent_url(found: Found, identity: Identity, state: str, verifier: str, redirect_uri: str) -> str:
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
    asked = {
        "response_type": "code",
        "client_id": identity.client_id,
        "redirect_uri": redirect_uri,
        "state": state,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
        "resource": found.resource,
    }
    if found.scope:
        asked["scope"] = found.scope
        if "offline_access" in found.scope.split():
            # OpenID Connect gives no refresh token without it.
            asked["prompt"] = "consent"
    parts = urlsplit(found.server.authorization_endpoint)
    query = urlencode([*parse_qsl(parts.query, keep_blank_values=True), *asked.items()])
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))


def _hash(state: str) -> str:
    return hashlib.sha256(state.encode(errors="replace")).hexdigest()
