"""The vault proxy: grants, policy and the doors to the outside. Imports nothing of the server."""

from galley_vault_proxy.grant.narrow import narrow

__all__ = ["narrow"]
