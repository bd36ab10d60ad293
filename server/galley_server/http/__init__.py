"""The HTTP face: the official paths under /v1, over the runtime. Only HTTP here; every rule is the runtime's."""
