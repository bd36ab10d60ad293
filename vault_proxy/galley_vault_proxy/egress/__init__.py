"""The egress door: the one way of a sandbox to HTTP hosts."""
