"""Policies: the little of HCL that they are written in, the templates in their paths, and what they allow."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from tests.vault_server.answers import Json, Unsupported

_RULE: Final = re.compile(r'\s*path\s+"([^"]+)"\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}\s*', re.DOTALL)
_LIST: Final = re.compile(r"(\w+)\s*=\s*\[([^\]]*)\]")
_MAP: Final = re.compile(r"(\w+)\s*=\s*\{([^}]*)\}", re.DOTALL)
_ENTRY: Final = re.compile(r'"(\w+)"\s*=\s*\[([^\]]*)\]')
_TEMPLATE: Final = re.compile(r"\{\{\s*identity\.entity\.aliases\.([\w-]+)\.name\s*\}\}")
_CAPABILITIES: Final = frozenset({"create", "read", "update", "delete", "list", "sudo"})


@dataclass(frozen=True, slots=True)
class Rule:
    path: str
    capabilities: frozenset[str]
    required: frozenset[str] = frozenset()
    allowed: Mapping[str, tuple[str, ...]] | None = None

    def covers(self, path: str) -> bool:
        if self.path.endswith("*"):
            return path.startswith(self.path[:-1])
        return path == self.path


def parsed(policy: str) -> tuple[Rule, ...]:
    rules, at = [], 0
    while at < len(policy):
        match = _RULE.match(policy, at)
        if match is None:
            raise Unsupported(f"policy text {policy[at : at + 60]!r}")
        rules.append(_rule(match[1], match[2]))
        at = match.end()
    return tuple(rules)


def _rule(path: str, body: str) -> Rule:
    if "+" in path or "*" in path[:-1]:
        raise Unsupported(f"policy path {path!r}")
    maps = {name: text for name, text in _MAP.findall(body)}
    lists = {name: _strings(text) for name, text in _LIST.findall(_MAP.sub("", body))}
    if maps.keys() - {"allowed_parameters"} or lists.keys() - {"capabilities", "required_parameters"}:
        raise Unsupported(f"policy rule {body!r}")
    capabilities = frozenset(lists.get("capabilities", ()))
    if capabilities - _CAPABILITIES:
        raise Unsupported(f"capabilities {sorted(capabilities)}")
    allowed = None
    if "allowed_parameters" in maps:
        allowed = {name: _strings(text) for name, text in _ENTRY.findall(maps["allowed_parameters"])}
    return Rule(path, capabilities, frozenset(lists.get("required_parameters", ())), allowed)


def _strings(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r'"([^"]*)"', text))


def filled(rules: Iterable[Rule], aliases: Mapping[str, str]) -> list[Rule]:
    """Put the identity's aliases in. A rule whose alias is unknown, or means something in a path, falls away."""
    found = []
    for rule in rules:
        accessors = _TEMPLATE.findall(rule.path)
        names = [aliases.get(accessor) for accessor in accessors]
        if any(name is None or re.search(r"[*+/]", name) for name in names):
            continue
        path = _TEMPLATE.sub(lambda match: aliases[match[1]], rule.path)
        if "{{" in path:
            raise Unsupported(f"template {rule.path!r}")
        found.append(Rule(path, rule.capabilities, rule.required, rule.allowed))
    return found


def best(rules: Iterable[Rule], path: str) -> list[Rule]:
    """The rules with the most specific path that covers this one; those of several policies add up."""
    covering = [rule for rule in rules if rule.covers(path)]
    if not covering:
        return []
    longest = max((not rule.path.endswith("*"), len(rule.path)) for rule in covering)
    return [rule for rule in covering if (not rule.path.endswith("*"), len(rule.path)) == longest]


def capabilities(rules: Iterable[Rule], path: str) -> frozenset[str]:
    return frozenset().union(*(rule.capabilities for rule in best(rules, path)))


def allows(rules: Iterable[Rule], path: str, capability: str, body: Json) -> bool:
    matching = [rule for rule in best(rules, path) if capability in rule.capabilities]
    return any(_parameters_fit(rule, body) for rule in matching)


def _parameters_fit(rule: Rule, body: Json) -> bool:
    if rule.required - body.keys():
        return False
    if rule.allowed is None:
        return True
    return all(name in rule.allowed and _value_fits(rule.allowed[name], value) for name, value in body.items())


def _value_fits(patterns: tuple[str, ...], value: JsonValue) -> bool:
    if not patterns:
        return True
    return isinstance(value, str) and any(globbed(pattern, value) for pattern in patterns)


def globbed(pattern: str, value: str) -> bool:
    if pattern.endswith("*"):
        return value.startswith(pattern[:-1])
    return pattern == value
