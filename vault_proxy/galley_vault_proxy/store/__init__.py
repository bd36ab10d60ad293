"""The secret store: one port, the embedded store and Vault behind it."""
