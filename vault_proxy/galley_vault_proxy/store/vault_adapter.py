"""The one place that speaks to Vault: `hvac`, with everything taken from it that could surprise. Blocking.

What is taken away, and why: proxies, .netrc and CA bundles of the environment (`trust_env`); redirects, which would
carry the token to another host; cookies; its error texts, which hold paths; its token of last resort (each call brings
its own); compressed and endless answers; its calls that send more than they were given.
"""

import http.cookiejar
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import requests
import urllib3.exceptions
from hvac.adapters import RawAdapter  # type: ignore[import-untyped]
from pydantic import JsonValue
from requests.adapters import HTTPAdapter

from galley_vault_proxy.secret import Secret
from galley_vault_proxy.settings import VaultSettings
from galley_vault_proxy.store.names import check_path
from galley_vault_proxy.store.vault_fault import Down, fault_of

Method: TypeAlias = Literal["get", "post", "put", "delete", "list"]
Json: TypeAlias = Mapping[str, JsonValue]

OWN_SESSION: Final = "galley-proxy"
_MOST_BYTES: Final = 4 << 20
_CHUNK: Final = 1 << 16
_CONNECT_S: Final = 3.0
_DONE: Final = frozenset({200, 204})


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `what` completes "Vault refuses to ..."; `again`: harmless to send twice.

    `patient`: wait as long as Vault itself may take, because the answer matters even when nobody waits for it.
    `telling`: that it fails says that Vault is not well.
    """

    method: Method
    path: str
    what: str
    body: Json | None = None
    token: Secret | None = None
    session: str = OWN_SESSION
    wrap_ttl_s: int | None = None
    again: bool = False
    patient: bool = False
    namespaced: bool = True
    telling: bool = True
    answers: frozenset[int] = field(default=_DONE)

    def __repr__(self) -> str:
        return f"Request({self.method} {self.path})"


@dataclass(frozen=True, slots=True)
class Answer:
    """The status, and the parsed body ({} when there is none). Does not print: it may hold secrets."""

    status: int
    body: Json

    def __repr__(self) -> str:
        return f"Answer({self.status})"

    def part(self, name: str) -> Json:
        """An object of the body, e.g. `data` or `auth`. Raises Down when there is none."""
        found = self.body.get(name)
        if not isinstance(found, dict):
            raise Down(f"Vault's answer has no {name}: is VAULT_ADDR the address of a Vault?", done=True, passing=False)
        return found


def text_of(part: Json, name: str) -> str:
    """A string of an answer's object. Raises Down."""
    found = part.get(name)
    if not isinstance(found, str):
        raise Down(f"Vault's answer has no {name}", done=True, passing=False)
    return found


def whole_of(part: Json, name: str) -> int:
    """A whole number of an answer's object. Raises Down."""
    found = part.get(name)
    if not isinstance(found, int):
        raise Down(f"Vault's answer has no {name}", done=True, passing=False)
    return found


class VaultAdapter:
    """Sends one request at a time per thread, and gives back Vault's answer or a VaultFault."""

    # Longer than a request may take in Vault (its default_max_request_duration is 90 s).
    _PATIENT_S: Final = 100.0

    def __init__(self, settings: VaultSettings, *, connections: int) -> None:
        self._timeout_s = settings.timeout_s
        self._session = _session(settings, connections)
        # sys/health answers 400 to a request that names a namespace.
        self._plain = self._raw(settings, namespace=None)
        self._namespaced = self._raw(settings, namespace=settings.namespace)

    def close(self) -> None:
        self._session.close()

    def send(self, request: Request, *, timeout_s: float | None = None) -> Answer:
        """Raises VaultFault, or InvalidRequest when the path could lead elsewhere."""
        headers = {"X-Galley-Session": request.session, "Accept-Encoding": "identity"}
        if request.token is not None:
            headers["X-Vault-Token"] = request.token.reveal()
        if request.wrap_ttl_s is not None:
            headers["X-Vault-Wrap-TTL"] = str(request.wrap_ttl_s)
        read_s = self._PATIENT_S if request.patient else min(self._timeout_s, timeout_s or self._timeout_s)
        adapter = self._namespaced if request.namespaced else self._plain
        try:
            with adapter.request(
                request.method,
                "/v1/" + check_path(request.path),
                headers=headers,
                raise_exception=False,
                timeout=(min(_CONNECT_S, read_s), read_s),
                stream=True,
                json=request.body,
            ) as response:
                return _answer(request, response.status_code, _body(response))
        except requests.RequestException as error:
            raise network_fault(error) from None
        except OSError:
            # Not of the network: `requests` looks for these files before it connects.
            raise Down(
                "a file of VAULT_CACERT, VAULT_CAPATH, VAULT_CLIENT_CERT or VAULT_CLIENT_KEY cannot be read",
                done=False,
                passing=False,
            ) from None
        except urllib3.exceptions.HTTPError as error:
            raise Down(f"the request to Vault failed ({type(error).__name__})", done=True) from None

    def _raw(self, settings: VaultSettings, *, namespace: str | None) -> RawAdapter:
        return RawAdapter(
            base_uri=settings.address,
            token=None,
            timeout=settings.timeout_s,
            allow_redirects=False,
            session=self._session,
            namespace=namespace,
        )


def network_fault(error: requests.RequestException) -> Down:
    """Of no connection nothing was sent; of everything later Vault may have done what was asked."""
    # Their texts hold the whole URL.
    if isinstance(error, requests.exceptions.SSLError):
        return Down(
            "Vault's certificate cannot be verified: name its authority in VAULT_CACERT, its name in "
            "VAULT_TLS_SERVER_NAME",
            done=False,
            passing=False,
        )
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return Down("Vault does not answer: no connection in time", done=False)
    if isinstance(error, requests.exceptions.ReadTimeout):
        return Down("Vault is slow: no answer in time", done=True)
    if isinstance(error, requests.exceptions.ConnectionError):
        return Down("Vault cannot be reached", done=not _never_connected(error))
    return Down(f"the request to Vault failed ({type(error).__name__})", done=True)


def _never_connected(error: requests.exceptions.ConnectionError) -> bool:
    # requests wraps urllib3's MaxRetryError, whose reason is what happened.
    cause = error.args[0] if error.args else None
    return type(getattr(cause, "reason", None)).__name__ in {"NewConnectionError", "NameResolutionError"}


def _answer(request: Request, status: int, content: bytes) -> Answer:
    body: Json = {}
    if content:
        try:
            parsed = json.loads(content)
        except ValueError:
            parsed = None
        if isinstance(parsed, dict):
            body = parsed
        elif status in request.answers:
            raise Down("what answers is no Vault: check VAULT_ADDR", done=True, passing=False)
    if status in request.answers:
        return Answer(status, body)
    errors = body.get("errors")
    texts = tuple(str(text) for text in errors) if isinstance(errors, list) else ()
    raise fault_of(status, texts, request.what)


def _body(response: requests.Response) -> bytes:
    content = bytearray()
    for chunk in response.iter_content(_CHUNK):
        content += chunk
        if len(content) > _MOST_BYTES:
            raise Down(f"Vault's answer is larger than {_MOST_BYTES >> 20} MiB", done=True, passing=False)
    return bytes(content)


def _session(settings: VaultSettings, connections: int) -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    session.headers["User-Agent"] = "galley-vault-proxy"
    session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    session.verify = _authorities(settings)
    if settings.client_cert is not None and settings.client_key is not None:
        session.cert = (str(settings.client_cert), str(settings.client_key))
    transport = _Transport(settings.tls_server_name, connections)
    session.mount("https://", transport)
    session.mount("http://", HTTPAdapter(pool_connections=1, pool_maxsize=connections, max_retries=0))
    return session


def _authorities(settings: VaultSettings) -> str | bool:
    if settings.ca_cert is not None:
        return str(settings.ca_cert)
    if settings.ca_path is not None:
        return str(settings.ca_path)
    # Else the system's, which `requests` would pass over for a bundle of its own.
    system = ssl.get_default_verify_paths()
    return system.cafile or system.capath or True


class _Transport(HTTPAdapter):
    """TLS under another name than the address's."""

    def __init__(self, server_name: str | None, connections: int) -> None:
        self._names = {} if server_name is None else {"server_hostname": server_name, "assert_hostname": server_name}
        super().__init__(pool_connections=1, pool_maxsize=connections, max_retries=0)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, **pool, **self._names)
