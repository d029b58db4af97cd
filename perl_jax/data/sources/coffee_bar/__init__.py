"""The embedded coffee orders: a generator whose right answer is known."""
