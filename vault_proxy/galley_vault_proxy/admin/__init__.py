"""The API under /v1 that is the spine's own: grants, sessions, the audit log, health."""
