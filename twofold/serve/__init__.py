"""Answer: a bundle and a request become recommendations."""
