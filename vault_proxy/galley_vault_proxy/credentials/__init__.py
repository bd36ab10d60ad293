"""Credentials: what an owner writes, and what the doors inject."""
