"""Explanation of a run: the gap between batch and catalogue, probes of vectors and lists, the map, and the card."""
