"""Arrays built from the prepared tables: vocabularies, features, batches."""
