"""PERL: parameter-efficient RLHF in JAX (arXiv:2403.10704)."""
