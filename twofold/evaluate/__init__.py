"""Is it good? Numbers that cannot be misread."""
