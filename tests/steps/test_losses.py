"""Losses of the steps by hand: sums, reduction, beta, temperature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from perl_jax import roles, steps
from tests.steps.cases import (
  BACKBONE,
  BETA,
  CONFIG,
  FLOAT32,
  LENGTH,
  PROMPT,
  RESPONSE,
  ROWS,
  TEMPERATURE,
  case,
  check_sums,
  hidden_of,
  labelled,
  log_sigmoid,
  logprobs_of,
  preferences,
  ran,
  reinforce,
  rl_batch,
  role,
  score_of,
)


def test_language_model_loss_by_hand():
  _, trainable, frozen, batch = case("sft")
  trainable = trainable["policy"]
  total = right = count = 0
  for row in range(ROWS):
    for column in np.flatnonzero(batch.target_mask[row]):
      segment = batch.segments[row] == batch.segments[row, column]
      ids = batch.tokens[row][segment & (np.arange(LENGTH) < column)]
      last = hidden_of(trainable, frozen, ids)[-1]
      logprobs = logprobs_of(last, frozen)
      target = batch.tokens[row, column]
      total -= logprobs[target]
      right += int(logprobs.argmax() == target)
      count += 1
  assert count > 10
  found, *_ = ran("sft")
  check_sums(found, loss=(total, count), accuracy=(right, count))


def test_pairwise_loss_by_hand():
  _, trainable, frozen, _ = case("pairwise")
  trainable = trainable["reward"]
  loss = right = margin = 0
  for pair in preferences():
    chosen, rejected = (
      score_of(trainable, hidden_of(trainable, frozen, ids)[-1])
      for ids in (pair.chosen, pair.rejected)
    )
    loss -= log_sigmoid(chosen - rejected)
    right += 0.5 + 0.5 * np.sign(chosen - rejected)
    margin += chosen - rejected
  check_sums(
    ran("pairwise")[0], loss=(loss, 6), accuracy=(right, 6), margin=(margin, 6)
  )


def test_equal_scores_are_half_right():
  """A head of zeros knows nothing: accuracy 1/2, loss log 2."""
  loss_fn, trainable, frozen, batch = case("pairwise")
  trainable = {"reward": trainable["reward"] | roles.init_head(CONFIG)}
  found = steps.means(jax.jit(loss_fn)(trainable, frozen, batch, None))
  assert found["accuracy"] == 0.5
  np.testing.assert_allclose(found["loss"], np.log(2.0), rtol=1e-6)


def test_pointwise_loss_by_hand():
  _, trainable, frozen, _ = case("pointwise")
  trainable = trainable["reward"]
  loss = right = total = 0
  for row in labelled():
    score = score_of(trainable, hidden_of(trainable, frozen, row.tokens)[-1])
    label = row.label
    loss -= label * log_sigmoid(score) + (1 - label) * log_sigmoid(-score)
    right += int((score > 0) == (label > 0.5))
    total += score
  check_sums(
    ran("pointwise")[0], loss=(loss, 7), accuracy=(right, 7), score=(total, 7)
  )


@functools.cache
def rl_by_hand():
  """{"policy_loss": a list of each row's tokens, ...}, and the KL of each row.

  The row that only fills up the batch has no tokens.
  """
  _, trainable, (frozen, _), batch = case("rl")
  anchor, _ = role(2)
  found = {
    name: [[] for _ in range(ROWS)]
    for name in ("policy_loss", "value_loss", "advantage", "return", "value")
  }
  kl = np.zeros(ROWS)
  for row in range(ROWS - 1):
    n = int(batch.response_mask[row].sum())
    prompt = batch.prompts[row, PROMPT - batch.prompt_lengths[row] :]
    response = batch.responses[row, 0, :n]
    ids = np.concatenate([prompt, response])

    def before(tree, ids=ids, n=n):
      return hidden_of(tree, frozen, ids)[-n - 1 : -1]

    def scores(tree, response=response, n=n, before=before):
      logprobs = logprobs_of(before(tree), frozen, TEMPERATURE)
      return logprobs[np.arange(n), response]

    policy = scores(trainable["policy"])
    values = score_of(trainable["value"], before(trainable["value"]))
    rewards = -BETA * (policy - scores(anchor))
    rewards[-1] += (1 - BETA) * batch.rewards[row, 0]
    kl[row] = np.sum(policy - scores(anchor))
    for t in range(n):
      returns = rewards[t:].sum()
      for name, value in (
        ("policy_loss", -policy[t] * (returns - values[t])),
        ("value_loss", (returns - values[t]) ** 2),
        ("advantage", returns - values[t]),
        ("return", returns),
        ("value", values[t]),
      ):
        found[name][row].append(value)
  return found, kl


def test_reinforce_loss_by_hand():
  tokens, kl = rl_by_hand()
  total = {name: sum(map(sum, rows)) for name, rows in tokens.items()}
  count = sum(map(len, tokens["value"]))
  rewards = rl_batch().rewards[: ROWS - 1, 0].astype(float)
  squares = [x**2 for row in tokens["return"] for x in row]
  found, *_ = ran("rl")
  check_sums(
    found,
    loss=(total["policy_loss"] + 0.5 * total["value_loss"], count),
    kl=(kl.sum(), ROWS - 1),
    kl_per_token=(kl.sum(), count),
    objective=(
      (1 - BETA) * rewards.sum() - BETA * kl.sum(), ROWS - 1
    ),
    return_square=(sum(squares), count),
    residual=(total["advantage"], count),
    residual_square=(total["value_loss"], count),
    clip_fraction=(0, count),
    **{name: (value, count) for name, value in total.items()},
  )  # fmt: skip


def test_on_policy_ratio_is_1():
  """Exactly: the policy that is updated is the one that sampled.

  That it did is told by what the sampler said of its tokens.
  """
  loss_fn, trainable, frozen, batch = case("rl")
  total, count = ran("rl")[0]["ratio"]
  assert total == count == 22
  found = steps.means(ran("rl")[0])
  assert found["sampler_difference"] < 2e-6
  other = trainable | {"policy": role(2)[0]}
  moved = steps.means(jax.jit(loss_fn)(other, frozen, batch, None))
  assert moved["sampler_difference"] > 0.01


def test_ratio_is_1_where_the_policy_is_the_one_that_was_measured():
  """With several updates the log-probs before the first are given."""
  _, trainable, frozen, batch = case("rl")
  estimator = steps.Estimator(name="ppo", epochs=2)
  batch = batch._replace(
    # Of `measure`, another program than the step's.
    policy_logprobs=batch.sampled_logprobs,
    values=np.zeros_like(batch.sampled_logprobs),
  )
  batch = steps.prepare(estimator, batch)
  loss_fn = jax.jit(
    steps.policy_loss(BACKBONE, estimator, temperature=TEMPERATURE)
  )
  found = steps.means(loss_fn(trainable, frozen, batch, None))
  np.testing.assert_allclose(found["ratio"], 1.0, rtol=0, atol=2e-6)
  assert found["clip_fraction"] == 0
  other = trainable | {"policy": role(2)[0]}
  moved = steps.means(loss_fn(other, frozen, batch, None))
  assert abs(moved["ratio"] - 1.0) > 0.01 and moved["clip_fraction"] > 0.1


# Reduction, beta, temperature.


def test_token_and_sequence_reduction():
  """By 22 tokens or 7 responses; the row that fills up is in neither."""
  _, trainable, frozen, batch = case("rl")
  tokens, _ = rl_by_hand()
  rows = [
    np.array(policy) + 0.5 * np.array(value)
    for policy, value in zip(
      tokens["policy_loss"][:-1], tokens["value_loss"][:-1], strict=True
    )
  ]

  @jax.jit
  def losses():
    return {
      reduction: reinforce(reduction=reduction)(
        trainable, frozen, batch, None
      )["loss"]
      for reduction in ("token", "sequence", "sequence_mean")
    }  # fmt: skip

  total = sum(row.sum() for row in rows)
  check_sums(
    losses(),
    token=(total, 22),
    sequence=(total, 7),
    sequence_mean=(sum(row.mean() for row in rows), 7),
  )


@functools.cache
def policy_gradient():
  """Gradient by the policy, of (beta, rewards, anchor log-probs)."""
  _, trainable, frozen, batch = case("rl")

  def total(policy, beta, rewards, anchor):
    changed = batch._replace(
      rewards=rewards,
      anchor_logprobs=anchor,
      beta=jnp.full(ROWS, beta, jnp.float32),
    )
    tree = trainable | {"policy": policy}
    return reinforce()(tree, frozen, changed, None)["loss"][0]

  gradient = jax.jit(jax.grad(total))
  return lambda *args: jax.device_get(gradient(trainable["policy"], *args))


def differ(first, second):
  return any(
    np.any(x != y)
    for x, y in zip(
      jax.tree.leaves(first), jax.tree.leaves(second), strict=True
    )
  )


def test_beta_weighs_reward_and_kl():
  """At 1 the reward, at 0 the KL has no influence, not even on one bit."""
  batch = rl_batch()
  rewards, anchor = batch.rewards, batch.anchor_logprobs
  other = (rewards + 1.0, np.asarray(anchor) - 0.5)
  for beta, reward_matters, kl_matters in (
    (0.0, True, False),
    (1.0, False, True),
    (BETA, True, True),
  ):
    gradient = functools.partial(policy_gradient(), beta)
    plain = gradient(rewards, anchor)
    assert differ(plain, gradient(other[0], anchor)) == reward_matters
    assert differ(plain, gradient(rewards, other[1])) == kl_matters


def test_temperature_divides_the_logits():
  """log pi at T is log softmax(z / T), and the loss reads that of the rollout.

  With another temperature the sampler said otherwise: the trap of trainers that
  sample at 0.7 and score at 1.
  """
  _, trainable, frozen, batch = case("rl")
  ids = np.concatenate([batch.prompts[0], batch.responses[0, 0]])
  hidden = hidden_of(trainable["policy"], frozen.base, ids)[PROMPT - 1 : -1]
  expected = logprobs_of(hidden, frozen.base, TEMPERATURE)
  found = batch.sampled_logprobs[0, 0]
  columns = np.arange(RESPONSE), batch.responses[0, 0]
  np.testing.assert_allclose(found, expected[columns], **FLOAT32)
  other = logprobs_of(hidden, frozen.base)[columns]
  assert np.abs(found - other).max() > 0.05
  other = jax.jit(reinforce(temperature=1.0))(trainable, frozen, batch, None)
  assert steps.means(other)["sampler_difference"] > 0.01


def test_means_of_nothing_are_0():
  nothing = (jnp.float32(0.0), jnp.float32(0.0))
  assert steps.means({"loss": nothing})["loss"] == 0.0
