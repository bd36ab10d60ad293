"""The sandbox: driver port, drivers, frames, channel and hand. Imports nothing of the server."""
