"""The Docker driver."""
