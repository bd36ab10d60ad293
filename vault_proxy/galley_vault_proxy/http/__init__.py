"""How a request is read and answered: the boundary, bodies, queries, envelopes, listeners."""
