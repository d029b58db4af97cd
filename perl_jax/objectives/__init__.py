"""Pure formulas: arrays in, unreduced arrays out.

  masked           sums, means and variances over the entries a mask keeps
  language_model   log-probabilities of given tokens, without [B, T, V] arrays
  preference       reward-model losses on pairs and on labels; DPO
  ensembles        one score from those of several reward models
  kl               estimates of the divergence from the anchor, and its weight
  advantages       rewards with KL -> returns -> advantages
  policy_gradient  losses of policy and value model: REINFORCE and PPO

Nothing here calls a model or reduces a loss: `steps/` does, with masked
sums and counts. Per-token arrays are `[B, T]`; entry `t` is about producing
`tokens[:, t]`.
"""
