"""Arrays to vectors and scores."""
