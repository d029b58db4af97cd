"""Data sources, splits, tokenisation and batches, in NumPy on the host.

Nothing here imports jax.
"""
