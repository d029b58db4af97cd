"""The public name of the embedded data's reward function.

It is used with `--config.reward.fn=perl_jax.data.coffee_bar:gold_reward`. The
data set itself is in `perl_jax.data.sources.coffee_bar`.
"""

from perl_jax.data.sources.coffee_bar.rows import gold_reward

__all__ = ["gold_reward"]
