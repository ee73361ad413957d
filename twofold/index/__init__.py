"""Retrieval index: filters and nearest-neighbor search."""

from twofold.index.filters import Filters, compile_filter
from twofold.index.item_index import build_index, load_index, save_index
from twofold.index.search import search

__all__ = ["Filters", "build_index", "compile_filter", "load_index", "save_index", "search"]
