"""What the user asks for: a closed, checked type."""
