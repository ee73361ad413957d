"""Find fast: filters and nearest neighbours."""
