"""Sources, splits, tokenisation and batches: host-side, numpy, no jax."""
