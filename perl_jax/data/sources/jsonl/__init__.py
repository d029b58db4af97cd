"""A user's own rows: JSON lines."""
