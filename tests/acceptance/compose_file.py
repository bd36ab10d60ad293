"""A compose file, as far as this project's own use it: read, put together with its overrides, and resolved.

What `docker compose config` makes of the same files is compared in test_deploy_files.py, where there is a compose.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / "deploy" / "credential-broker"
_VARIABLE: Final = re.compile(r"\$(?:\$|\{(\w+):-([^}]*)\})")
# Lists that an override replaces; it adds to all others.
_REPLACED: Final = frozenset({"command", "entrypoint", "test"})


class _Reset:
    """`!reset`: an override takes something away."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Knows the one tag of compose that the files use."""


_Loader.add_constructor("!reset", lambda *_: _Reset())


@dataclass(frozen=True)
class Service:
    """What a container would be made from."""

    name: str
    raw: Mapping[str, Any]

    @property
    def environment(self) -> dict[str, str]:
        return {name: str(value) for name, value in (self.raw.get("environment") or {}).items()}

    @property
    def networks(self) -> list[str]:
        return list(self.raw.get("networks") or [])

    @property
    def has_network(self) -> bool:
        return self.raw.get("network_mode") != "none"

    @property
    def volumes(self) -> list[tuple[str, str, bool]]:
        """Each one's source, where it is mounted, and whether it may be written."""
        found = [volume.split(":") for volume in self.raw.get("volumes") or []]
        return [(source, target, rest != ["ro"]) for source, target, *rest in found]

    @property
    def needs(self) -> dict[str, str]:
        return {name: how["condition"] for name, how in (self.raw.get("depends_on") or {}).items()}

    @property
    def target(self) -> str | None:
        """The stage of the Dockerfile that its image is."""
        image = str(self.raw["image"])
        named = {"galley-broker-tools": "tools", "galley-vault-proxy": "proxy", "galley-broker-sandbox": "sandbox"}
        return named.get(image) or (self.raw.get("build") or {}).get("target")

    @property
    def words(self) -> list[str]:
        """The whole command line."""
        entrypoint = self.raw.get("entrypoint")
        return [*(entrypoint if entrypoint is not None else entrypoint_of(self.target)), *self.raw.get("command", [])]


@dataclass(frozen=True)
class Compose:
    services: Mapping[str, Service]
    networks: Mapping[str, Any]
    volumes: Mapping[str, Any]


def compose(*overrides: str, **variables: str) -> Compose:
    """compose.yaml with the overrides of these names, e.g. "tunnel", and with variables of the environment."""
    whole: dict[str, Any] = {}
    for name in ("compose.yaml", *(f"compose.{override}.yaml" for override in overrides)):
        part = yaml.load((FOLDER / name).read_text(), _Loader)
        whole = _merged(whole, {key: value for key, value in part.items() if not key.startswith("x-")})
    whole = _resolved(whole, variables)
    services = {name: Service(name, raw) for name, raw in whole["services"].items()}
    return Compose(services, whole["networks"], whole["volumes"])


def entrypoint_of(target: str | None) -> list[str]:
    """What the Dockerfile says, or the stage that its stage is built on."""
    found: list[str] = []
    stage, wanted = "", {target}
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    bases = dict(re.findall(r"^FROM (\S+) AS (\S+)$", "\n".join(lines), re.MULTILINE))
    wanted |= {base for base, name in bases.items() if name == target}
    for line in lines:
        if line.startswith("FROM "):
            stage = line.split()[-1]
        elif line.startswith("ENTRYPOINT ") and stage in wanted:
            found = json.loads(line.removeprefix("ENTRYPOINT "))
    return found


def _merged(below: Any, above: Any, key: str = "") -> Any:
    if isinstance(below, Mapping) and isinstance(above, Mapping):
        merged = {name: _merged(below[name], above[name], name) if name in below else above[name] for name in above}
        return {name: value for name, value in {**below, **merged}.items() if not isinstance(value, _Reset)}
    if isinstance(below, Sequence) and not isinstance(below, str) and isinstance(above, list) and key not in _REPLACED:
        return [*below, *above]
    return above


def _resolved(value: Any, variables: Mapping[str, str]) -> Any:
    match value:
        case str():
            return _VARIABLE.sub(lambda found: variables.get(found[1], found[2]) if found[1] else "$", value)
        case Mapping():
            return {name: _resolved(inner, variables) for name, inner in value.items()}
        case list():
            return [_resolved(inner, variables) for inner in value]
        case _:
            return value
