"""`galley-vault-proxy doctor`: tries, with the proxy's own login, everything that it needs of its secret store.

It changes nothing that lasts: it writes under a vault of its own and purges it.
"""

import argparse
import asyncio
import re
import secrets
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, TypeAlias

from galley_vault_proxy.config import read_config
from galley_vault_proxy.errors import ConfigError, ProxyError
from galley_vault_proxy.mcp_door.stdio_trial import FIX, try_stdio
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.settings import Settings, TokenAuth, VaultSettings
from galley_vault_proxy.state import State
from galley_vault_proxy.store import kv, leases, vault_setup
from galley_vault_proxy.store.embedded import EmbeddedStore
from galley_vault_proxy.store.gate import Gate
from galley_vault_proxy.store.leases import Leases
from galley_vault_proxy.store.operator import Operator, print_line
from galley_vault_proxy.store.port import SecretRef
from galley_vault_proxy.store.proxy_identity import ProxyIdentity, fault_to_error
from galley_vault_proxy.store.session_tokens import SessionToken, SessionTokens
from galley_vault_proxy.store.vault_adapter import Answer, Request
from galley_vault_proxy.store.vault_client import VaultClient
from galley_vault_proxy.store.vault_fault import Invalid, Refused, VaultFault

Verdict: TypeAlias = Literal["ok", "fail", "unknown"]

_SESSION: Final = "galley-doctor"
_REF: Final = SecretRef("galley-doctor", "canary")
_OTHER: Final = SecretRef("galley-doctor-other", "canary")
_READS: Final = 20
_LEAST_OPENBAO: Final = (2, 6)
_BOOTSTRAP: Final = "run `galley-vault-proxy bootstrap` with an operator's VAULT_TOKEN"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what was seen, and what would set it right."""

    verdict: Verdict
    name: str
    seen: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class _Vault:
    settings: VaultSettings
    client: VaultClient
    identity: ProxyIdentity
    tokens: SessionTokens
    # The operator's token, where the proxy itself logs in otherwise.
    operator: Secret | None


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    argparse.ArgumentParser(
        prog="galley-vault-proxy doctor",
        description="Try everything that the proxy needs of its secret store, and of this machine for stdio servers. "
        "With another login than GALLEY_VAULT_AUTH=token, an operator's VAULT_TOKEN lets it look at the audit log too.",
    ).parse_args(argv)
    settings = Settings.from_env(environ)
    token = environ.get("VAULT_TOKEN", "").strip()
    operator = Secret(token) if token and settings.vault and not isinstance(settings.vault.auth, TokenAuth) else None
    return asyncio.run(_report(settings, operator))


async def _report(settings: Settings, operator: Secret | None) -> int:
    failed = False
    async for finding in _findings(settings, operator):
        mark = {"ok": "ok     ", "fail": "FAILED ", "unknown": "unknown"}[finding.verdict]
        print_line(f"{mark} {finding.name}: {finding.seen}")
        if finding.fix:
            print_line(f"        fix: {finding.fix}")
        failed = failed or finding.verdict == "fail"
    return 1 if failed else 0


async def _findings(settings: Settings, operator: Secret | None) -> AsyncIterator[Finding]:
    store = examine_embedded(settings) if settings.vault is None else examine(settings.vault, operator)
    async for finding in store:
        yield finding
    async for finding in examine_stdio(settings):
        yield finding


async def examine_stdio(settings: Settings) -> AsyncIterator[Finding]:
    """MCP servers on stdio need a sandbox of their own; nothing to say where there are none."""
    try:
        servers = read_config(settings.config)
    except ConfigError as error:
        yield Finding("fail", "stdio servers", str(error), "see the message")
        return
    if servers:
        trouble = await try_stdio(servers.values())
        if trouble is None:
            yield Finding("ok", "stdio servers", f"each gets a sandbox of its own: {', '.join(sorted(servers))}")
        else:
            yield Finding("fail", "stdio servers", trouble, FIX)


async def examine_embedded(settings: Settings) -> AsyncIterator[Finding]:
    """The embedded store needs a file and its key."""
    try:
        async with EmbeddedStore.open(settings.home, key=settings.store_key) as store:
            await store.ready()
    except ProxyError as error:
        yield Finding("fail", "embedded store", error.message, "see the message")
        return
    yield Finding("ok", "embedded store", f"{settings.home / 'secrets.db'} opens with its key")


async def examine(settings: VaultSettings, operator: Secret | None) -> AsyncIterator[Finding]:
    """Look at one thing after the other, as far as one is possible without the one before."""
    with tempfile.TemporaryDirectory() as home:
        async with (
            State.open(Path(home) / "state.db", [leases.SCHEMA]) as state,
            VaultClient.open(settings) as client,
            ProxyIdentity.open(client, settings) as identity,
        ):
            tokens = SessionTokens(identity, Leases(state), settings.mounts)
            vault = _Vault(settings, client, identity, tokens, operator)
            for look, needed in _LOOKS:
                finding = await _guarded(look, vault)
                yield finding
                if finding.verdict == "fail" and needed:
                    return


async def _guarded(look: "_Look", vault: _Vault) -> Finding:
    name = look.__name__.removeprefix("_").replace("_", " ")
    try:
        return await look(vault)
    except VaultFault as fault:
        return Finding("fail", name, fault_to_error(fault).message.split(": run ")[0], _BOOTSTRAP)
    except ProxyError as error:
        return Finding("fail", name, error.message, "see the message")


async def _server(vault: _Vault) -> Finding:
    answer = await vault.client.probe(kv.HEALTH, tells=False)
    version = str(answer.body.get("version"))
    name = f"{vault.settings.address}, version {version}"
    unwell = kv.unwell(answer)
    if unwell is None:
        return _judged(name, version)
    reason, _, fix = unwell.partition(": ")
    return Finding("fail", "server", f"{name}: {reason}", fix or "initialise and unseal it")


def _judged(name: str, version: str) -> Finding:
    """HashiCorp's versions begin with 1, OpenBao's with 2."""
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        return Finding("unknown", "server", f"{name}, which tells nothing")
    number = (int(match[1]), int(match[2]))
    if (2, 0) <= number < _LEAST_OPENBAO:
        return Finding(
            "fail",
            "server",
            name,
            "upgrade OpenBao to 2.6 or later: before it, accessors of other namespaces can be revoked, and wildcards "
            "in a policy's template are taken at their word",
        )
    return Finding("ok", "server", name)


async def _login(vault: _Vault) -> Finding:
    answer = await vault.identity.send(Request("get", "auth/token/lookup-self", "look its own token up", again=True))
    data = answer.part("data")
    policies = data.get("policies")
    listed = [str(policy) for policy in policies] if isinstance(policies, list) else []
    wanted = vault.settings.mounts.proxy_policy
    if "root" in listed:
        return Finding(
            "fail", "login", "the proxy has a root token", f"give it a token with the policy {wanted} and no other"
        )
    more = sorted(set(listed) - {wanted, "default"})
    if more:
        return Finding("fail", "login", f"the proxy's token also has {', '.join(more)}", f"leave it {wanted} only")
    if data.get("renewable") is not True and data.get("ttl") != 0:
        return Finding(
            "fail", "login", f"the token cannot be renewed, and ends in {data.get('ttl')} s", "make a renewable one"
        )
    return Finding("ok", "login", f"by {type(vault.settings.auth).__name__.removesuffix('Auth')}, with {wanted}")


async def _capabilities(vault: _Vault) -> Finding:
    mounts = vault.settings.mounts
    needs = vault_setup.proxy_needs(mounts)
    secret = f"{mounts.kv}/data/{mounts.kv_prefix}/vlt-doctor/crd-doctor"
    forbidden = {f"sys/policies/acl/{mounts.policy}": {"create", "update"}, secret: {"read", "sudo"}}
    answer = await vault.identity.send(
        Request("post", "sys/capabilities-self", "ask what it may", {"paths": [*needs, *forbidden]}, again=True)
    )
    data = answer.part("data")

    def held(path: str) -> set[str]:
        found = data.get(path)
        return {str(each) for each in found} if isinstance(found, list) else set()

    lacks = [
        f"{', '.join(sorted(set(need) - held(path)))} on {path}"
        for path, need in needs.items()
        if set(need) - held(path)
    ]
    if lacks:
        return Finding("fail", "own capabilities", f"lacks {'; '.join(lacks)}", _BOOTSTRAP)
    over = [f"{', '.join(sorted(held(path) & bad))} on {path}" for path, bad in forbidden.items() if held(path) & bad]
    if over:
        return Finding(
            "fail", "own capabilities", f"may {'; '.join(over)}", f"take that away from the proxy; {_BOOTSTRAP}"
        )
    return Finding("ok", "own capabilities", "all that it needs; it cannot read a secret or write a policy")


async def _session_tokens(vault: _Vault) -> Finding:
    token = await _token(vault, _REF)
    other = await _token(vault, _OTHER)
    mounts = vault.settings.mounts
    await vault.identity.send(kv.write(mounts, _OTHER, {"value": Secret("canary")}, None))
    try:
        await _as_session(vault, token, kv.read(mounts, _OTHER))
    except Refused:
        found = Finding("ok", "session tokens", "Vault itself holds each one to its own vault")
    else:
        found = Finding("fail", "session tokens", "one could read another vault's secret", _BOOTSTRAP)
    finally:
        await vault.identity.send(kv.purge(mounts, _OTHER))
        for each in (token, other):
            await vault.tokens.revoke_session(each.gate.session_id)
    return found


async def _standby_reads(vault: _Vault) -> Finding:
    token = await _token(vault, _REF)
    mounts = vault.settings.mounts
    stale = 0
    try:
        for _ in range(_READS):
            value = secrets.token_hex(8)
            await vault.identity.send(kv.write(mounts, _REF, {"value": Secret(value)}, None))
            answer = await _as_session(vault, token, kv.read(mounts, _REF))
            stale += not kv.material(answer).fields["value"].matches(value)
    finally:
        await vault.identity.send(kv.purge(mounts, _REF))
        await vault.tokens.revoke_session(_SESSION)
    if stale:
        return Finding(
            "fail",
            "standby reads",
            f"{stale} of {_READS} reads right after a write were stale",
            "set `disable_standby_reads = true` in OpenBao's configuration: a standby that answers reads itself also "
            "honours revoked tokens",
        )
    return Finding("ok", "standby reads", f"{_READS} of {_READS} reads right after a write were current")


async def _sealing(vault: _Vault) -> Finding:
    mounts = vault.settings.mounts
    answer = await vault.identity.send(kv.encrypt(mounts, "galley-doctor", b"canary"))
    sealed = str(answer.part("data").get("ciphertext"))
    await vault.identity.send(kv.decrypt(mounts, "galley-doctor", sealed))
    try:
        await vault.identity.send(kv.decrypt(mounts, "galley-doctor-other", sealed))
    except Invalid:
        return Finding("ok", "sealing", f"transit key {mounts.transit_key} binds a value to its vault")
    return Finding("fail", "sealing", "the transit key does not bind a value to its vault", "use a key of aes256-gcm96")


async def _audit_log(vault: _Vault) -> Finding:
    fix = "set VAULT_TOKEN to an operator's token for this one command"
    if vault.operator is None:
        return Finding("unknown", "audit log", "the proxy's own token may not look at it", fix)
    header = vault_setup.AUDIT_HEADER
    operator = Operator(vault.client, vault.operator)
    try:
        devices = await operator.read("sys/audit", namespaced=False)
        found = await operator.read_audit_header(header)
    except ConfigError:
        return Finding("unknown", "audit log", "VAULT_TOKEN may not look at it", fix)
    if devices is None or not devices.part("data"):
        return Finding("fail", "audit log", "there is none", "declare an audit device in the server's configuration")
    if found is None:
        return Finding("fail", "audit log", f"does not record {header}", _BOOTSTRAP)
    return Finding("ok", "audit log", f"records {header}")


_Look: TypeAlias = Callable[[_Vault], Awaitable[Finding]]
# Whether the next ones need it.
_LOOKS: Final[tuple[tuple[_Look, bool], ...]] = (
    (_server, True),
    (_login, True),
    (_capabilities, True),
    (_session_tokens, True),
    (_standby_reads, False),
    (_sealing, False),
    (_audit_log, False),
)


async def _token(vault: _Vault, ref: SecretRef) -> SessionToken:
    gate = Gate(_SESSION, frozenset({ref.vault_id}), datetime.now(UTC) + timedelta(minutes=5))
    return await vault.tokens.get(gate, ref.vault_id)


async def _as_session(vault: _Vault, token: SessionToken, request: Request) -> Answer:
    return await vault.client.send(
        Request(request.method, request.path, request.what, token=token.token, session=_SESSION, again=True)
    )
