"""The only place with an optimiser."""
