"""Whether a URL leads back to this very server: a model endpoint that is Galley itself would ask itself for ever."""

import ipaddress
import socket
from typing import TypeAlias
from urllib.parse import urlsplit

from galley_server.errors import ConfigError

IP: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


def refuse_own_address(base_url: str, *, host: str, port: int) -> None:
    """Raise ConfigError if `base_url` is where a server that listens on `host` and `port` answers. May ask DNS."""
    target = urlsplit(base_url)
    wanted = target.port or (443 if target.scheme == "https" else 80)
    # Names are looked up only when the port is ours: the usual start asks nobody.
    if wanted != port or target.hostname is None:
        return
    if any(leads_to(there, here) for there in _addresses(target.hostname) for here in _addresses(host)):
        raise ConfigError(
            f"the model's base URL is {base_url}, which is this Galley server itself: "
            "set GALLEY_MODEL_BASE_URL (or ANTHROPIC_BASE_URL) to an endpoint that serves the Messages API"
        )


def leads_to(there: IP, here: IP) -> bool:
    """Whether a connection to `there` reaches a socket bound to `here` on this machine."""
    if here.is_unspecified:
        return there.is_loopback or there.is_unspecified or _is_local(there)
    # Connecting to 0.0.0.0 or [::] reaches loopback.
    return there == here or (there.is_unspecified and here.is_loopback)


def _is_local(address: IP) -> bool:
    """Whether the machine owns an address. Only such a one can be bound."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True


def _addresses(host: str) -> frozenset[IP]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return frozenset()  # a name that leads nowhere leads not to us; asking the model will say so
    return frozenset(ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in found)
