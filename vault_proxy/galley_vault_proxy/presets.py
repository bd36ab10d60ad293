"""Sets of hosts that an operator opens by name instead of listing them. Data only."""

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

Preset: TypeAlias = Literal["package_managers", "mcp_servers"]
"""`package_managers`: the public registries below. `mcp_servers`: the hosts of the grant's own MCP servers."""

PACKAGE_MANAGERS: Final[Mapping[str, tuple[str, ...]]] = {
    "apt": ("deb.debian.org", "security.debian.org", "archive.ubuntu.com", "security.ubuntu.com", "ports.ubuntu.com"),
    "cargo": ("crates.io", "index.crates.io", "static.crates.io"),
    "gem": ("rubygems.org", "index.rubygems.org"),
    "go": ("proxy.golang.org", "sum.golang.org"),
    "npm": ("registry.npmjs.org", "registry.yarnpkg.com"),
    "pip": ("pypi.org", "files.pythonhosted.org"),
}
PACKAGE_HOSTS: Final = frozenset(host for hosts in PACKAGE_MANAGERS.values() for host in hosts)
