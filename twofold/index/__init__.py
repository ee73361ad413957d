"""Find fast: filters and nearest neighbours."""

from twofold.index.filters import compile_filter
from twofold.index.item_mask import Filters
from twofold.index.search import build_index, load_index, save_index, search

__all__ = ["Filters", "build_index", "compile_filter", "load_index", "save_index", "search"]
