"""What takes too long for the other tests: `make nightly` runs it."""
