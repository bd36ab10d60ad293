"""The vault proxy: grants, policy and the doors to the outside. Imports nothing of the server."""
