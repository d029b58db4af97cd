"""How judges compare the responses of two models, and what comes of it."""
