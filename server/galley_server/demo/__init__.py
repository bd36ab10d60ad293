"""The scripted model: a small program behind a real Messages-API server, for the demo and the tests."""
