"""PERL: parameter-efficient RLHF in JAX (arXiv:2403.10704)."""

# The only place of the version; CHANGELOG.md says what is in it.
__version__ = "0.2.0"
