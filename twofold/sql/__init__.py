"""The SQL expressions that a recipe may contain, and the same expression for every engine."""
