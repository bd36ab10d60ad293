"""The official wire shapes, as frozen models. No I/O here."""
