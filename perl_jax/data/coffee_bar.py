"""The public name of the embedded data's reward function.

`--config.reward.fn=perl_jax.data.coffee_bar:gold_reward`; the orders themselves
are in `perl_jax.data.sources.coffee_bar`.
"""

from perl_jax.data.sources.coffee_bar.rows import gold_reward

__all__ = ["gold_reward"]
