"""Recipes: the configuration of an experiment as closed, checked types."""
