"""Answer: a bundle and a request become recommendations."""

from twofold.serve.recommender import Recommender, load

__all__ = ["Recommender", "load"]
