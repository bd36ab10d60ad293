"""The append-only log: rows, the store that keeps them, and everything folded from them."""
