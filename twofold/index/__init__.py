"""Find fast: filters and nearest neighbours."""

from twofold.index.eligible import Filters
from twofold.index.filters import compile_filter
from twofold.index.knn import build_index, load_index, save_index, search

__all__ = ["Filters", "build_index", "compile_filter", "load_index", "save_index", "search"]
