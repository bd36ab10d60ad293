"""The brain: decides a session's next step from its folded log, and carries it out."""
