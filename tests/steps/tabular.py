"""A policy of which everything is known: 16 responses of two tokens.

A response is y = (a, b), each one of 4 tokens; a table gives its reward r(y).
The objective is that of the paper with k1 in the reward,

  J(pi) = E_pi[(1 - beta) r(y)] - beta KL(pi || pi_anchor),

whose optimum is pi* = pi_anchor exp((1 - beta) r / beta) / Z.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from perl_jax.objectives import language_model

VOCAB, LENGTH = 4, 2
BETA = 0.3
RESPONSES = np.array(list(itertools.product(range(VOCAB), repeat=LENGTH)))
_RNG = np.random.default_rng(6)
REWARDS = _RNG.normal(size=VOCAB**LENGTH).astype(np.float32)

# Row 0: logits of the first token; row 1 + a: of the second, after a first a.
ANCHOR = _RNG.normal(size=(1 + VOCAB, VOCAB)).astype(np.float32)
POLICY = (ANCHOR + _RNG.normal(size=ANCHOR.shape)).astype(np.float32)
BASELINE = _RNG.normal(size=1 + VOCAB).astype(np.float32)


def states(responses):
  """Row of the table that each token is drawn from, `[B, 2]`."""
  first = jnp.zeros_like(responses[:, 0])
  return jnp.stack([first, 1 + responses[:, 0]], axis=1)


def token_logprobs(table, responses):
  rows = jax.nn.log_softmax(table)[states(responses)]
  return jnp.take_along_axis(rows, responses[..., None], axis=-1)[..., 0]


def sample(table, key, batch):
  first_key, second_key = jax.random.split(key)
  first = jax.random.categorical(first_key, table[0], shape=(batch,))
  second = jax.random.categorical(second_key, jnp.asarray(table)[1 + first])
  return jnp.stack([first, second], axis=1)


def rewards_of(responses, rewards=REWARDS):
  """r of each response, `[B]`."""
  return jnp.asarray(rewards)[responses @ jnp.array([VOCAB, 1])]


def probabilities(table):
  return jnp.exp(token_logprobs(table, RESPONSES).sum(axis=1))


def exact_objective(table, beta=BETA, rewards=REWARDS):
  """J by enumeration."""
  logprobs = token_logprobs(table, RESPONSES).sum(axis=1)
  anchor = token_logprobs(ANCHOR, RESPONSES).sum(axis=1)
  gain = (1.0 - beta) * rewards - beta * (logprobs - anchor)
  return jnp.sum(jnp.exp(logprobs) * gain)


def optimum(beta=BETA, rewards=REWARDS):
  return tilted((1.0 - beta) * np.asarray(rewards, float) / beta)


@functools.cache
def anchor_logprobs():
  """log pi_anchor of each response, `[16]`."""
  return np.asarray(token_logprobs(ANCHOR, RESPONSES).sum(axis=1), float)


def tilted(gains):
  """pi_anchor exp(gains) / Z, `[16]`."""
  weights = np.exp(anchor_logprobs() + gains - np.max(gains))
  return weights / weights.sum()


def grpo_scores(joint, rewards=REWARDS):
  """Expected score of each response in a group of two, in deviations, `[16]`.

  Two different rewards are one deviation above and below their mean:
  s(y) = P(r < r(y)) - P(r > r(y)).
  """
  return np.sign(np.subtract.outer(rewards, rewards)) @ joint


def grpo_optimum(beta=BETA, rewards=REWARDS):
  """Where GRPO in groups of two rests, `[16]`.

  (1 - beta) s(y) - beta (k1(y) - KL) / 2 = 0: a response is itself half of the
  mean that its KL is compared with. pi = pi_anchor exp(2 (1 - beta) s / beta)
  / Z, in which s depends on pi: found by damped iteration.
  """
  found = tilted(np.zeros(len(rewards)))
  for _ in range(4000):
    best = tilted(2.0 * (1.0 - beta) / beta * grpo_scores(found, rewards))
    found = found**0.99 * best**0.01
    found /= found.sum()
  return found


def table_of(joint):
  """Probabilities `[5, 4]` of tokens by state, of a joint `[4, 4]`."""
  first = joint.sum(axis=1)
  return np.vstack([first, joint / first[:, None]])


def total_variation(p, q):
  return 0.5 * float(np.abs(np.asarray(p, float) - q).sum())


class Roles:
  """`roles` on the table: what `steps.policy_loss` asks, without a model.

  A role's parameters are {"table": [5, 4]} or {"values": [5]}.
  """

  @staticmethod
  def with_response(prompts, lengths, responses, mask, *, group=1):
    del prompts, lengths, mask, group
    return responses.reshape(-1, LENGTH)

  @staticmethod
  def response_logprobs(backbone, params, sequence, **options):
    del backbone, options
    rows = jax.nn.log_softmax(params["table"])[states(sequence)]
    return language_model.TokenScores(
      logprobs=token_logprobs(params["table"], sequence),
      entropy=-jnp.sum(jnp.exp(rows) * rows, axis=-1),
      correct=None,
    )

  @staticmethod
  def response_values(backbone, params, sequence, **options):
    del backbone, options
    return params["values"][states(sequence)]

  @staticmethod
  def response_kl(backbone, policy, anchor, sequence, **options):
    del backbone, options
    policy, anchor = (
      jax.nn.log_softmax(tree["table"])[states(sequence)]
      for tree in (policy, anchor)
    )
    return jnp.sum(jnp.exp(policy) * (policy - anchor), axis=-1)
