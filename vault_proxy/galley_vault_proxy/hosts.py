"""Host names: one spelling for each, and the patterns that name several. Pure.

A pattern is a bare host name, an IPv4 address, or `*.example.com`, which stands for every name below `example.com`
and not for `example.com` itself.
"""

import ipaddress
import re
from typing import Final

MAX_HOST: Final = 253
_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")


def normal_host(text: str) -> str:
    """The one spelling of a host: lower case, A-labels, no final dot, no brackets. Raises ValueError if it is none."""
    host = text.strip().removesuffix(".")
    if host.startswith("[") and host.endswith("]"):
        return str(ipaddress.IPv6Address(host[1:-1]))
    if ":" in host:
        return str(ipaddress.IPv6Address(host))
    if not host.isascii():
        # The standard library's IDNA folds what browsers fold; what it cannot encode is no host.
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            raise ValueError("not a host name") from None
    host = host.lower()
    labels = host.split(".")
    if len(host) > MAX_HOST or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("not a host name")
    # What a resolver would read as a number is an address: only the usual spelling of it is taken.
    if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]):
        return str(ipaddress.IPv4Address(host))
    return host


def normal_pattern(text: str) -> str:
    """The one spelling of a host pattern. Raises ValueError if it is none."""
    if text.startswith("*."):
        host = normal_host(text[2:])
        if host.replace(".", "").isdigit() or ":" in host:
            raise ValueError("an address has no names below it")
        return f"*.{host}"
    return normal_host(text)


def host_matches(pattern: str, host: str) -> bool:
    """Both in their normal spelling."""
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) >= len(pattern)
    return pattern == host
