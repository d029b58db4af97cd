"""How a policy and a reward model are evaluated on held-out rows."""
