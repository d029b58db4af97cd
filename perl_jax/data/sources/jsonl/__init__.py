"""Users' own data: files with one JSON object per line."""
