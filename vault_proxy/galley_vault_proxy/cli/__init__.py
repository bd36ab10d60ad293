"""The subcommands of `galley-vault-proxy`."""
