"""Vaults and credentials: the official API, and which credential belongs to a request. Secrets stay in the store."""
