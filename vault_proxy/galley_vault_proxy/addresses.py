"""Which addresses are nobody's but the operator's. Pure.

An allow-list of names says nothing about where a name leads, so every connection to the outside is judged by the
address it goes to. Newer or unknown ranges are refused with the rest: what is not known to be public is not.
"""

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Net: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# The special-purpose registries of IANA, written out: `is_global` differs from one Python to the next, and takes
# multicast, 6to4, site-local and the metadata services below for public.
_NOT_PUBLIC_4: Final = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # "this host": connects to loopback on Linux
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT, and the metadata service of one cloud
        "127.0.0.0/8",
        "168.63.129.16/32",  # platform service of one cloud, on a public address
        "169.254.0.0/16",  # link-local, and most metadata services
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_PUBLIC_6: Final = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_6: Final = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",
        "3fff::/20",
    )
)
# Where an IPv4 address stands in an IPv6 address that leads to it: the prefix, and the bits to its right.
_CARRIERS: Final = (
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),  # mapped
    (ipaddress.IPv6Network("::ffff:0:0:0/96"), 0),  # translated
    (ipaddress.IPv6Network("::/96"), 0),  # compatible
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (ipaddress.IPv6Network("2002::/16"), 80),  # 6to4
)


def refused(address: Address, opened: Iterable[Net]) -> bool:
    """Whether an address must not be connected to. `opened`: networks that the operator opens."""
    nets = tuple(opened)
    return not any(_in_any(form, nets) for form in _forms(address)) and not _public(address)


def _public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return not _in_any(address, _NOT_PUBLIC_4)
    carried = _carried(address)
    if carried is not None:
        return _public(carried)
    # ISATAP: the IPv4 address at the end of the interface's part, under any prefix.
    if int(address) >> 32 & 0xFFFF_FFFF in (0x0000_5EFE, 0x0200_5EFE):
        return False
    return address in _PUBLIC_6 and not _in_any(address, _NOT_PUBLIC_6)


def _forms(address: Address) -> Iterator[Address]:
    """The address, and the one that it carries."""
    yield address
    if isinstance(address, ipaddress.IPv6Address) and (carried := _carried(address)) is not None:
        yield carried


def _carried(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    for prefix, right in _CARRIERS:
        if address in prefix:
            return ipaddress.IPv4Address(int(address) >> right & 0xFFFF_FFFF)
    return None


def _in_any(address: Address, nets: Iterable[Net]) -> bool:
    return any(address.version == net.version and address in net for net in nets)
