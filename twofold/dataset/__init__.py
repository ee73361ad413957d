"""Tables to arrays: vocabularies, features, batches."""
