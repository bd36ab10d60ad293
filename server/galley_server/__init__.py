"""Galley: the managed-agents runtime people host themselves."""

__version__ = "0.1.0"
