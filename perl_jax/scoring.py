"""Log-probs, values and rewards of sampled responses.

`make_scores` is for training: all roles score the same tokens, and roles with
the same base go through it in one pass. `make_logprobs` and `make_rewards` are
for evaluation: policy and anchor go through the *same* compiled function with
different arguments, so that equal parameters give equal bits and the KL at step
0 is exactly 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax import roles, sharding
from perl_jax.objectives import masked


def make_logprobs(
  backbone: roles.Backbone, *, temperature: float
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Returns `logprobs(trainable, frozen, prompts, lengths, responses, mask)`.

  The function returns log-probs and entropies of the response tokens, in nats,
  `[B * G, T]` float32 each, 0 where masked, for G responses to each of B
  prompts, by prompt.

  Args:
    backbone: Model and adapter shape.
    temperature: Divides the logits, as when the responses were sampled.
  """

  def logprobs(trainable, frozen, prompts, lengths, responses, mask):
    rows = roles.shared_rows(backbone.config, prompts, lengths, responses, mask)
    scores = roles.response_logprobs(
      backbone,
      params_lib.combine(trainable, frozen),
      rows.sequence,
      response_len=responses.shape[1],
      temperature=temperature,
      entropy=True,
      group=rows.group,
    )
    zero = jnp.zeros((), jnp.float32)
    return (
      jnp.where(mask, scores.logprobs, zero),
      jnp.where(mask, scores.entropy, zero),
    )

  return logprobs


def make_rewards(
  backbone: roles.Backbone,
  *,
  members: int = 1,
  closing: roles.Closing | None = None,
) -> Callable[..., jax.Array]:
  """Returns `rewards(trainable, frozen, prompts, lengths, responses, mask)`.

  The function returns the reward model's score of each response, `[B * G]`
  float32, for G responses to each of B prompts, by prompt.

  Args:
    backbone: Model and adapter shape.
    members: Number of reward models. Above 1, `trainable` holds the stacked
      trees of all, and the scores are `[members, B * G]`, from one pass.
    closing: What the reward model reads after a response, or None.
  """

  def rewards(trainable, frozen, prompts, lengths, responses, mask):
    params = params_lib.combine(trainable, frozen)
    read = roles.closed(closing, responses, mask)
    rows = roles.shared_rows(
      backbone.config, prompts, lengths, read.tokens, read.mask
    )
    return roles.response_scores(
      backbone,
      params,
      rows.sequence,
      rows.columns_of(read.response_mask),
      max_response=read.tokens.shape[1],
      group=rows.group,
    )

  if members > 1:
    return jax.vmap(rewards, in_axes=(0, *[None] * 5))
  return rewards


def make_scores(
  backbone: roles.Backbone,
  *,
  temperature: float,
  together: tuple[str, ...],
  reward_backbone: roles.Backbone | None = None,
  members: int = 1,
  closing: roles.Closing | None = None,
  microbatches: int = 1,
  buckets: tuple[int, ...] = (),
) -> Callable[..., dict[str, jax.Array]]:
  """Returns `scores(trees, bases, prompts, lengths, responses, mask)`.

  `trees` maps the roles to score with ("anchor", "policy", "value", "reward")
  to their trainable trees; `bases` maps a role to its base, and "" to the base
  of all other roles. For responses `[B, G, T]` to prompts `[B, P]` the function
  returns a dict by role: log-probs (anchor, policy) and values, `[B, G, T]`
  float32, 0 where masked, and rewards `[B, G]`, or `[members, B, G]` of an
  ensemble.

  Args:
    backbone: Model and adapter shape of policy, anchor and value.
    temperature: Sampling temperature of the rollout.
    together: Roles whose adapters are stacked and go through the base in one
      pass; they have the same leaves and share the base "".
    reward_backbone: Model and adapter shape of the reward model.
    members: Number of reward models in the ensemble; above 1 its tree is
      stacked.
    closing: What the reward model reads after a response, or None.
    microbatches: Number of microbatches that are scored in sequence.
    buckets: Lengths that the responses of a microbatch are cut to, the longest
      ones in the first; () leaves them as they are.
  """

  def scores(trees, bases, prompts, lengths, responses, mask):
    arrays = prompts, lengths, responses, mask
    plain, whole = _rows(None, *arrays), _rows(closing, *arrays)
    # What follows a response changes no state before it: who shares the reward
    # model's pass may read on.
    readers = {"reward", *(together if "reward" in together else ())}

    def rows_of(name):
      return whole if name in readers else plain

    def params_of(name, tree):
      return params_lib.combine(tree, bases.get(name, bases[""]))

    def run(name, tree):
      own = reward_backbone if name == "reward" else backbone
      rows = rows_of(name)
      return roles.hidden_states(
        own,
        params_of(name, tree),
        rows.sequence,
        contiguous=rows.shape[1] == 1,
      )

    hidden = _hidden_states(run, trees, together, members)

    def reward(tree, hidden):
      params = params_of("reward", tree)
      return _rewards(reward_backbone, params, whole, hidden)

    found = {}
    for name, tree in trees.items():
      if name == "reward":
        score = jax.vmap(reward) if members > 1 else reward
        found[name] = score(tree, hidden[name])
        continue
      args = backbone, params_of(name, tree), rows_of(name), hidden[name]
      if name == "value":
        values = _values(*args)
      else:
        values = _logprobs(*args, temperature)
      found[name] = masked.keep(values[..., : mask.shape[-1]], mask)
    return found

  return _in_microbatches(scores, microbatches, members, buckets)


class _Rows(NamedTuple):
  """Rows of prompts with their responses, and with what follows these.

  Attributes:
    sequence: The rows, `[B, P + G T]`.
    own: The rows with nothing written over a response, `[B, P + G T]`, int32: a
      closing takes the stop token off where the template writes none.
    response_mask: Which columns of the rows are a response, `[B, P + G T]`.
    shape: (B, G, T), with the columns of what follows in T.
  """

  sequence: roles.Sequence
  own: jax.Array
  response_mask: jax.Array
  shape: tuple[int, int, int]


def _rows(closing, prompts, lengths, responses, mask) -> _Rows:
  read = roles.closed(closing, responses, mask)
  batch, group, length = responses.shape
  room = read.tokens.shape[-1] - length
  own = jnp.pad(responses, ((0, 0), (0, 0), (0, room))).reshape(batch, -1)
  return _Rows(
    roles.with_response(prompts, lengths, read.tokens, read.mask, group=group),
    jnp.concatenate([prompts, own], axis=1),
    jnp.pad(
      read.response_mask.reshape(batch, -1), ((0, 0), (prompts.shape[1], 0))
    ),
    read.tokens.shape,
  )


def _rewards(backbone, params, rows: _Rows, hidden) -> jax.Array:
  """Rewards `[B, G]` from the hidden states of the rows."""
  batch, group, length = rows.shape
  found = roles.response_scores(
    backbone,
    params,
    rows.sequence,
    rows.response_mask,
    max_response=length,
    group=group,
    hidden=hidden,
  )
  return found.reshape(batch, group)


def _logprobs(backbone, params, rows: _Rows, hidden, temperature) -> jax.Array:
  """Log-probs `[B, G, T]` of the responses' own tokens, by hidden states."""
  _, group, length = rows.shape
  found = roles.response_logprobs(
    backbone,
    params,
    rows.sequence._replace(tokens=rows.own),
    response_len=length,
    temperature=temperature,
    group=group,
    hidden=hidden,
  )
  return found.logprobs.reshape(rows.shape)


def _values(backbone, params, rows: _Rows, hidden) -> jax.Array:
  """Values `[B, G, T]` from the hidden states of the rows."""
  _, group, length = rows.shape
  found = roles.response_values(
    backbone,
    params,
    rows.sequence,
    response_len=length,
    group=group,
    hidden=hidden,
  )
  return found.reshape(rows.shape)


def _hidden_states(run, trees, together, members):
  """Final hidden states by role; `[members, ...]` of an ensemble.

  `run(name, tree)` is one pass; roles of `together` run as "anchor".
  """

  def adapter(name):
    return {k: v for k, v in trees[name].items() if k != params_lib.HEAD}

  found, stacked, sizes = {}, [], {}
  for name in trees:
    several = name == "reward" and members > 1
    if name in together:
      tree = adapter(name)
      stacked.append(tree if several else jax.tree.map(lambda x: x[None], tree))
      sizes[name] = members if several else 1
    elif several:
      found[name] = jax.vmap(lambda tree, n=name: run(n, tree))(adapter(name))
    else:
      found[name] = run(name, adapter(name))
  if stacked:
    whole = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *stacked)
    hidden = jax.vmap(lambda tree: run("anchor", tree))(whole)
    start = 0
    for name, size in sizes.items():
      part = hidden[start : start + size]
      several = name == "reward" and members > 1
      found[name] = part if several else part[0]
      start += size
  return found


def _in_microbatches(scores, microbatches: int, members: int, buckets):
  """The same function, over the microbatches of a batch in sequence."""
  if microbatches == 1 and not buckets:
    return scores

  def run(trees, bases, *arrays):
    def score(part):
      return scores(trees, bases, *part)

    if not buckets:
      parts = sharding.strided_parts(arrays, microbatches)
      found = jax.lax.map(score, parts)
      return {name: join(name, array) for name, array in found.items()}
    longest = sharding.Lengths(buckets, _lengths, _cut)
    parts, rows = sharding.parts_by_length(
      arrays, _lengths(arrays), microbatches
    )
    room = arrays[-1].shape[-1]
    found = jax.lax.map(
      lambda part: longest.on_bucket(
        lambda cut: padded(score(cut), room), part
      ),
      parts,
    )
    back = jnp.argsort(rows)
    return {
      name: jnp.take(join(name, array), back, axis=batch_axis(name))
      for name, array in found.items()
    }

  def batch_axis(name):
    return 1 if name == "reward" and members > 1 else 0

  def join(name, array):
    axis = batch_axis(name)
    array = jnp.moveaxis(array, 0, axis + 1)
    shape = array.shape
    return array.reshape(*shape[:axis], -1, *shape[axis + 2 :])

  def padded(found, room):
    def pad(array):
      return jnp.pad(array, ((0, 0), (0, 0), (0, room - array.shape[-1])))

    return {k: v if k == "reward" else pad(v) for k, v in found.items()}

  return run


def _lengths(arrays) -> jax.Array:
  """Tokens of the longest response of each row, `[B]`."""
  return masked.longest(arrays[-1])


def _cut(arrays, length: int):
  *prompts, responses, mask = arrays
  return *prompts, responses[..., :length], mask[..., :length]


def penalise_unstopped(
  rewards: jax.Array, stopped: jax.Array, penalty: float
) -> jax.Array:
  """rewards - penalty where a response has no stop token, `[B]` float32."""
  return rewards - penalty * (1.0 - stopped.astype(jnp.float32))
