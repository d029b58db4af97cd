"""A stage's programs from abstract arrays: nothing is allocated."""
