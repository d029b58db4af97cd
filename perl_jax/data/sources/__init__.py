"""Data sources: one file or folder for each, and the registry of all."""
