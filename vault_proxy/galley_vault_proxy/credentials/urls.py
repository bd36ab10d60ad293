"""The normal form of an MCP server's URL, by which credentials are found. No I/O here.

Scheme and host in lower case, without default port and trailing slashes. Path, query, subdomain and any other port
must be the same: they are where one tenant ends and the next begins.
"""

import re
from typing import Final
from urllib.parse import urlsplit

from galley_vault_proxy.hosts import normal_host

MAX_URL: Final = 2048
STDIO: Final = re.compile(r"stdio:[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def normal_url(url: str) -> str:
    """The form that every spelling of one server shares. Raises ValueError if it is no http or https URL."""
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise ValueError("not a URL")
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS or "@" in parts.netloc or "#" in url:
        raise ValueError("not an http or https URL without user name and fragment")
    host = normal_host(parts.hostname or "")
    if ":" in host:
        host = f"[{host}]"
    if parts.port is not None and parts.port != _DEFAULT_PORTS[scheme]:
        host = f"{host}:{parts.port}"
    query = f"?{parts.query}" if "?" in url else ""
    return f"{scheme}://{host}{parts.path.rstrip('/')}{query}"


def server_key(url: str) -> str:
    """What finds the credential of an MCP server, `stdio:NAME` included. Raises ValueError."""
    return url if STDIO.fullmatch(url) else normal_url(url)


def origin(url: str) -> str:
    """Scheme, host and port of a URL in its normal form."""
    parts = urlsplit(normal_url(url))
    return f"{parts.scheme}://{parts.netloc}"


def without_query(url: str) -> str:
    """A URL as it may be shown: a query may hold a key, and so may a user name."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if parts.netloc else url.partition("?")[0]
