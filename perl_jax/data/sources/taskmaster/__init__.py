"""Taskmaster dialogues: demonstrations, ratings and weak preferences."""
