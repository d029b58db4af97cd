"""What a role starts from: the base, an adapter, a head."""
