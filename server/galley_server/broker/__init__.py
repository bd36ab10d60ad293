"""The vault proxy as this server uses it: a child or a neighbour, asked over its Unix sockets and in no other way."""
