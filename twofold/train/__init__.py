"""The only place with an optimizer."""
