"""Environments: requests and answers. Source of the shapes: `anthropic.types.beta`, package 2.12."""

import re
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, field_validator

from galley_server.wire.base import Timestamp, Wire
from galley_server.wire.bounds import Description, Metadata, MetadataPatch, Name, not_here
from galley_server.wire.union import ByType
from galley_server.wire.validation import RuleBroken

_HOST: Final = re.compile(
    r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)


class Unrestricted(Wire):
    type: Literal["unrestricted"] = "unrestricted"


class Limited(Wire):
    type: Literal["limited"] = "limited"
    allowed_hosts: tuple[str, ...]
    allow_mcp_servers: bool
    allow_package_managers: bool


Networking: TypeAlias = Annotated[Unrestricted | Limited, Field(discriminator="type")]


class Packages(Wire):
    """Always empty in this release."""

    type: Literal["packages"] = "packages"
    apt: tuple[()] = ()
    cargo: tuple[()] = ()
    gem: tuple[()] = ()
    go: tuple[()] = ()
    npm: tuple[()] = ()
    pip: tuple[()] = ()


class CloudConfig(Wire):
    type: Literal["cloud"] = "cloud"
    networking: Networking = Unrestricted()
    packages: Packages = Packages()


class Environment(Wire):
    id: str
    type: Literal["environment"] = "environment"
    name: str
    description: str | None
    config: CloudConfig
    metadata: dict[str, str]
    scope: Literal["organization"] = "organization"
    created_at: Timestamp
    updated_at: Timestamp
    archived_at: Timestamp | None


class UnrestrictedParam(Wire):
    type: Literal["unrestricted"]


class LimitedParams(Wire):
    type: Literal["limited"]
    allowed_hosts: Annotated[tuple[str, ...], Field(max_length=1000)] | None = None
    allow_mcp_servers: bool | None = None
    allow_package_managers: bool | None = None

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for index, host in enumerate(hosts or ()):
            if len(host) > 253 or not _HOST.fullmatch(host):
                raise RuleBroken(
                    'Input should be a hostname like "example.com" or "*.example.com", without scheme, port or path',
                    index,
                )
        return hosts


NetworkingParam: TypeAlias = Annotated[UnrestrictedParam | LimitedParams, ByType()]
NoPackages: TypeAlias = Annotated[
    tuple[()] | None,
    not_here("Packages of an environment are not supported in this release of Galley; leave the list empty"),
]


class PackagesParams(Wire):
    type: Literal["packages"] = "packages"
    apt: NoPackages = None
    cargo: NoPackages = None
    gem: NoPackages = None
    go: NoPackages = None
    npm: NoPackages = None
    pip: NoPackages = None


class CloudConfigParams(Wire):
    type: Literal["cloud"]
    networking: NetworkingParam | None = None
    packages: PackagesParams | None = None


NO_SELF_HOSTED: Final = ByType(
    refused=(
        (
            "self_hosted",
            "Self-hosted environments are not supported: Galley itself runs on your machine; use 'cloud'",
        ),
    )
)
ConfigParam: TypeAlias = Annotated[CloudConfigParams, NO_SELF_HOSTED]


class _Scoped(Wire):
    scope: Literal["organization", "account"] | None = None

    @field_validator("scope")
    @classmethod
    def _check_scope(cls, scope: str | None) -> str | None:
        if scope == "account":
            raise RuleBroken("Only 'organization' is supported: a Galley has no accounts")
        return scope


class EnvironmentCreate(_Scoped):
    name: Name
    description: Description | None = None
    config: ConfigParam | None = None
    metadata: Metadata = Field(default_factory=dict)


class EnvironmentUpdate(_Scoped):
    """Left out: kept. Null clears the description; elsewhere null means left out."""

    name: Name | None = None
    description: Description | None = None
    config: ConfigParam | None = None
    metadata: MetadataPatch = Field(default_factory=dict)
