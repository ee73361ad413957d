"""Explanation of a run: from training batches to serving, probes of vectors and lists, and the map."""
