"""The command `perl_jax`, and `python -m perl_jax`."""

from perl_jax import starting


def run() -> None:
  """Runs what `python -m perl_jax.main` does."""
  starting.begin()
  # It imports JAX, which takes seconds, and signals are heard meanwhile.
  from perl_jax import main

  main.run()


if __name__ == "__main__":
  run()
