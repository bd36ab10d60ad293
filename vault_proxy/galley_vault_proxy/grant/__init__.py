"""Grants: what a token allows, how it is made, narrowed and verified, and which ones live."""
