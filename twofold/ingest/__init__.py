"""Own logs and public data: downloads, the synthetic world, profiles of logs and drafted recipes."""
