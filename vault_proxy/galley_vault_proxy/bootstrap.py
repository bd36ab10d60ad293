"""`galley-vault-proxy bootstrap`: writes into Vault what the proxy needs, says what it changed, and is harmless again.

It needs an operator's token, once; the proxy itself never writes a policy, a role or a mount.
"""

import argparse
import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from galley_vault_proxy.errors import ConfigError
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.settings import VaultSettings
from galley_vault_proxy.store import vault_setup
from galley_vault_proxy.store.operator import Operator, approle_mount, audit_header_path, operators_settings, print_line
from galley_vault_proxy.store.proxy_identity import fault_to_error
from galley_vault_proxy.store.vault_adapter import Json, Method, text_of
from galley_vault_proxy.store.vault_fault import VaultFault
from galley_vault_proxy.store.vault_setup import Wanted

_CIDR: Final = re.compile(r"[0-9a-fA-F:.]{2,45}/[0-9]{1,3}")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that Vault is to hold.

    Without `writes` it holds it already, or `change` says who else must do something about it.
    """

    name: str
    change: str
    writes: tuple[tuple[Method, str, Json], ...]
    namespaced: bool = True


async def plan(vault: Operator, settings: VaultSettings, wanted: Wanted) -> AsyncIterator[Step]:
    """Compare what Vault holds with what it is to hold, one thing at a time; each is to be written before the next.

    Raises VaultFault, and ConfigError when a mount is taken by something else.
    """
    mounts = settings.mounts
    held = (await _need(vault, "sys/mounts")).get("data")
    yield _kv(held, mounts.kv)
    yield _mount(held, mounts.transit, "transit", {"type": "transit"})
    yield await _transit_key(vault, mounts.transit, mounts.transit_key)
    accessor = await _token_accessor(vault)
    yield await _policy(vault, mounts.policy, vault_setup.session_policy(mounts, accessor, wanted.dynamic))
    yield await _policy(vault, mounts.proxy_policy, vault_setup.proxy_policy(mounts))
    path = f"auth/token/roles/{mounts.token_role}"
    yield await _role(vault, "token role", path, vault_setup.token_role(mounts, wanted.cidrs))
    yield await _audit_header(vault)
    if wanted.approle is not None:
        auths = (await _need(vault, "sys/auth")).get("data")
        mount = approle_mount(settings)
        yield _auth(auths, mount)
        path = f"auth/{mount}/role/{wanted.approle}"
        yield await _role(vault, "login role", path, vault_setup.login_role(mounts, wanted.cidrs))


async def bootstrap(
    settings: VaultSettings, operator: Secret, wanted: Wanted, *, write: bool, say: Callable[[str], None]
) -> int:
    """Carry the plan out, or only print it; return how many things were (or are) to change."""
    changes = 0
    try:
        async with Operator.open(settings, operator) as vault:
            async for step in plan(vault, settings, wanted):
                changes += bool(step.writes)
                if not step.writes:
                    say(f"  ! {step.name}: {step.change}" if step.change else f"  = {step.name}")
                    continue
                for method, path, body in step.writes if write else ():
                    await vault.write(path, body, method=method, namespaced=step.namespaced)
                say(f"  {'+' if write else '?'} {step.name}: {step.change}")
            if write and wanted.approle is not None:
                await _say_role_id(vault, settings, wanted.approle, say)
    except VaultFault as fault:
        raise fault_to_error(fault) from None
    return changes


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    arguments = _parser().parse_args(argv)
    settings, operator = operators_settings(environ)
    wanted = Wanted(tuple(arguments.dynamic), tuple(arguments.cidr), arguments.approle)
    changes = asyncio.run(bootstrap(settings, operator, wanted, write=not arguments.plan, say=print_line))
    what = "to change" if arguments.plan else "changed"
    print_line(f"{settings.address}: {changes or 'nothing'} {what}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="galley-vault-proxy bootstrap",
        description="Write into Vault what the proxy needs: mounts, policies, roles. Needs VAULT_ADDR and an "
        "operator's VAULT_TOKEN. Running it again changes nothing that is right.",
    )
    parser.add_argument("--plan", action="store_true", help="print what would change, and change nothing")
    parser.add_argument(
        "--dynamic", metavar="MOUNT", action="append", default=[], help="another engine that sessions may issue from"
    )
    parser.add_argument(
        "--cidr",
        type=_cidr,
        action="append",
        default=[],
        help="tokens are good from these addresses only, e.g. 10.1.2.3/32",
    )
    parser.add_argument(
        "--approle", metavar="NAME", type=_name, help="also make an AppRole for the proxy to log in with"
    )
    return parser


def _cidr(text: str) -> str:
    if not _CIDR.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r}: use a CIDR, e.g. 10.1.2.3/32")
    return text


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: use lower-case letters, digits and -")
    return text


def _kv(held: JsonValue, path: str) -> Step:
    found = held.get(path + "/") if isinstance(held, dict) else None
    if isinstance(found, dict):
        options = found.get("options")
        if found.get("type") != "kv" or not isinstance(options, dict) or options.get("version") != "2":
            raise ConfigError(f"{path}/ is not a KV engine of version 2: set GALLEY_VAULT_KV_MOUNT to another path")
        # Others may use it too, so its configuration is left alone.
        return Step(f"mount {path}/", "", ())
    body: Json = {"type": "kv", "options": {"version": "2"}}
    configure: Json = {"max_versions": vault_setup.MAX_VERSIONS}
    return Step(
        f"mount {path}/",
        f"KV version 2, keeping {vault_setup.MAX_VERSIONS} versions",
        (("post", f"sys/mounts/{path}", body), ("post", f"{path}/config", configure)),
    )


def _mount(held: JsonValue, path: str, kind: str, body: Json) -> Step:
    found = held.get(path + "/") if isinstance(held, dict) else None
    if not isinstance(found, dict):
        return Step(f"mount {path}/", kind, (("post", f"sys/mounts/{path}", body),))
    if found.get("type") != kind:
        raise ConfigError(f"{path}/ is not a {kind} engine: set another path for it")
    return Step(f"mount {path}/", "", ())


def _auth(held: JsonValue, path: str) -> Step:
    found = held.get(path + "/") if isinstance(held, dict) else None
    if not isinstance(found, dict):
        return Step(f"login method {path}/", "approle", (("post", f"sys/auth/{path}", {"type": "approle"}),))
    if found.get("type") != "approle":
        raise ConfigError(f"auth/{path}/ is not an AppRole method: set GALLEY_VAULT_AUTH_MOUNT to another path")
    return Step(f"login method {path}/", "", ())


async def _transit_key(vault: Operator, mount: str, key: str) -> Step:
    # Nothing at a mount that is not there yet: then the answer is 404 too.
    found = await vault.read(f"{mount}/keys/{key}")
    if found is None:
        body: Json = {"type": "aes256-gcm96"}
        return Step(f"transit key {key}", "aes256-gcm96", (("post", f"{mount}/keys/{key}", body),))
    kind = found.part("data").get("type")
    if kind not in {"aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"}:
        raise ConfigError(
            f"{mount}/keys/{key} cannot bind a value to its vault: set GALLEY_VAULT_TRANSIT_KEY to another"
        )
    return Step(f"transit key {key}", "", ())


async def _token_accessor(vault: Operator) -> str:
    # It differs from server to server and from namespace to namespace.
    auths = (await _need(vault, "sys/auth")).get("data")
    token = auths.get("token/") if isinstance(auths, dict) else None
    if not isinstance(token, dict):
        raise ConfigError("this namespace has no token store")
    return text_of(token, "accessor")


async def _policy(vault: Operator, name: str, text: str) -> Step:
    found = await vault.read(f"sys/policies/acl/{name}")
    if found is not None and found.part("data").get("policy") == text:
        return Step(f"policy {name}", "", ())
    change = "written" if found is None else "rewritten, it was another"
    return Step(f"policy {name}", change, (("put", f"sys/policies/acl/{name}", {"policy": text}),))


async def _role(vault: Operator, kind: str, path: str, body: Json) -> Step:
    name = f"{kind} {path.rsplit('/', 1)[-1]}"
    found = await vault.read(path)
    if found is None:
        return Step(name, "written", (("post", path, body),))
    held = found.part("data")
    wrong = sorted(key for key, value in body.items() if not same_setting(held.get(key), value))
    if not wrong:
        return Step(name, "", ())
    return Step(name, f"set right: {', '.join(wrong)}", (("post", path, body),))


def same_setting(held: JsonValue, value: JsonValue) -> bool:
    """Vault leaves empty lists out, or says null, and a CIDR of one address is shown as that address."""
    if isinstance(value, list):
        return _words(held if isinstance(held, list) else []) == _words(value)
    return (held or None) == (value or None)


def _words(values: Sequence[JsonValue]) -> list[str]:
    return sorted(str(value).removesuffix("/32").removesuffix("/128") for value in values)


async def _audit_header(vault: Operator) -> Step:
    header = vault_setup.AUDIT_HEADER
    name = f"audit header {header}"
    try:
        found = await vault.read_audit_header(header)
    except ConfigError:
        # The token of a namespace may do everything in there, and this is not in there.
        path = audit_header_path(header)
        return Step(name, f"ask an administrator of the root namespace for `vault write {path} hmac=false`", ())
    setting = None if found is None else found.part("data").get(header)
    if setting == {"hmac": False}:
        return Step(name, "", ())
    body: Json = {"hmac": False}
    return Step(name, "in plain text", (("post", audit_header_path(header), body),), namespaced=False)


async def _say_role_id(vault: Operator, settings: VaultSettings, role: str, say: Callable[[str], None]) -> None:
    mount = approle_mount(settings)
    found = await _need(vault, f"auth/{mount}/role/{role}/role-id")
    data = found.get("data")
    role_id = data.get("role_id") if isinstance(data, dict) else None
    say(f"    GALLEY_VAULT_AUTH=approle GALLEY_VAULT_ROLE_ID={role_id}")
    say(f"    its login, into files: galley-vault-proxy hand-over --approle {role} FOLDER")


async def _need(vault: Operator, path: str) -> Json:
    found = await vault.read(path)
    if found is None:
        raise ConfigError(f"Vault has no {path}: is VAULT_NAMESPACE right?")
    return found.body
