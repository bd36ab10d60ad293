"""`galley-vault-proxy vault-name`: how a vault and its credentials are called inside Vault, for who sets up roles."""

import argparse
import sys
from collections.abc import Mapping, Sequence

from galley_vault_proxy.settings import VaultMounts
from galley_vault_proxy.store.names import credential_name, role_name, vault_name


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    parser = argparse.ArgumentParser(
        prog="galley-vault-proxy vault-name",
        description="Print how a vault is called inside Vault. Asks nobody.",
    )
    parser.add_argument("vault", metavar="VAULT_ID")
    parser.add_argument("--credential", metavar="CREDENTIAL_ID", help="print the path of this credential's secret")
    parser.add_argument("--role", help="print the name of this dynamic role, as it is to be called in Vault")
    arguments = parser.parse_args(argv)
    name = vault_name(arguments.vault)
    if arguments.role is not None:
        sys.stdout.write(role_name(name, arguments.role) + "\n")
    elif arguments.credential is not None:
        default = VaultMounts()
        mount = environ.get("GALLEY_VAULT_KV_MOUNT", "").strip() or default.kv
        prefix = environ.get("GALLEY_VAULT_KV_PREFIX", "").strip() or default.kv_prefix
        sys.stdout.write(f"{mount}/{prefix}/{name}/{credential_name(arguments.credential)}\n")
    else:
        sys.stdout.write(name + "\n")
    return 0
