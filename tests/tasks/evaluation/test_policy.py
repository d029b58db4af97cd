"""Evaluating a policy: the rows, their order, and the means."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import params, roles, sampling, sharding
from perl_jax.data.batches.prompts import PromptBatch
from perl_jax.data.records import Prompt
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.evaluation import policy as policy_evaluation
from perl_jax.tasks.evaluation import so_far
from perl_jax.tasks.rollouts import engine as engine_lib
from perl_jax.tasks.rollouts import metrics as rollout_metrics
from perl_jax.tasks.rollouts import reward_function, rewards
from perl_jax.tasks.training import standing
from tests import toys

SPEC = LoraSpec(rank=2, alpha=2.0)
BACKBONE = roles.Backbone(toys.config("tiny"), SPEC)
SAMPLING = sampling.SamplingSpec(
  response_len=6, stop_ids=(2, 5), temperature=0.8
)
PROMPTS = toys.random_tokens(11, 5, 3)
ROWS = [
  Prompt(f"row {i}", str(i), ({"role": "user", "content": f"say {i}"},), "3")
  for i in range(5)
]


class Words:
  """Token ids as text, with the prompts that they answer."""

  def __init__(self):
    self.answered = []

  def decode(self, ids, prompt=()):
    self.answered.append(prompt)
    return " ".join(map(str, ids))


def batches():
  """Rows 3, 1 and 4, 0, 2 in batches of 4, the second filled up."""
  for rows in ([3, 1, 4, 0], [2]):
    tokens = np.zeros((4, 3), np.int32)
    tokens[: len(rows)] = PROMPTS[rows]
    index = np.array(rows + [-1] * (4 - len(rows)), np.int32)
    lengths = np.where(index >= 0, 3, 1).astype(np.int32)
    yield PromptBatch(tokens, lengths, index >= 0, index)


def checker(row, response):
  judged = {"long": float(len(response.split()) > 3)}
  return judged | ({"even": 1.0} if int(row.group) % 2 == 0 else {})


@functools.cache
def mesh():
  return sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])


@functools.cache
def role(seed, head=False):
  base = toys.random_params(BACKBONE.config)
  tree = toys.random_params(BACKBONE.config, SPEC, head=head, seed=seed)
  trainable, _ = params.partition(tree, "lora")
  return roles.Role(
    BACKBONE, sharding.place(mesh(), trainable), sharding.place(mesh(), base)
  )


@functools.cache
def engine():
  return engine_lib.Engine(BACKBONE, SAMPLING, role(3, head=True))


def evaluator(key=0):
  return policy_evaluation.PolicyEvaluator(
    engine(),
    mesh=mesh(),
    batches=batches,
    rows=ROWS,
    tokenization=Words(),
    checker=checker,
    key=jax.random.key(key),
  )


def rewarder():
  return rewards.Rewarder(role(3, head=True), engine().rewards, None)


@functools.cache
def evaluated(policy, key=0):
  return evaluator(key)(role(policy), role(1), rewarder())


def test_rows_come_back_in_their_order_without_fillers():
  _, rows = evaluated(2)
  assert [row["prompt"] for row in rows] == [f"user: say {i}" for i in range(5)]
  assert all(row["reference"] == "3" for row in rows)
  assert [("even" in row["judgements"]) for row in rows] == [
    True, False, True, False, True
  ]  # fmt: skip


def test_a_response_is_read_as_one_to_its_own_prompt():
  found = evaluator()
  found(role(2), role(1), rewarder())
  prompts = [row.prompt for row in ROWS]
  assert [prompts.index(p) for p in found._tokenization.answered] == [
    3, 1, 4, 0, 2
  ]  # fmt: skip


def test_policy_that_is_its_anchor_has_kl_0_exactly():
  equal = dataclasses.replace(role(1))  # else nothing would be compared
  metrics, rows = evaluator()(equal, role(1), rewarder())
  assert metrics["kl"] == metrics["kl_per_token"] == 0.0
  assert all(row["kl"] == 0.0 for row in rows)
  assert evaluated(2)[0]["kl"] != 0.0


def test_the_policy_as_its_own_anchor_is_scored_once(monkeypatch):
  calls = []

  def counted(*args):
    calls.append(args)
    return real(*args)

  real = engine().logprobs
  beside = evaluator()(dataclasses.replace(role(1)), role(1), rewarder())
  monkeypatch.setattr(engine(), "logprobs", counted)
  assert evaluator()(role(1), role(1), rewarder()) == beside
  assert len(calls) == len(list(batches()))


@pytest.mark.parametrize("batch", [0, 1])
def test_what_was_measured_before_a_kill_is_not_measured_again(
  tmp_path, monkeypatch, batch
):
  """Samples, KL, rewards of a model and of a function: the same bits."""

  def function(prompts, responses, rows):
    asked.extend(row["id"] for row in rows)
    return [len(text) / 3 for text in responses]

  def measured(part=so_far.NOTHING):
    found = reward_function.RewardFunction("letters", function)
    both = rewards.Rewarder(
      role(3, head=True), engine().rewards, found,
      tokenization=Words(), mesh=mesh(),
    )  # fmt: skip
    return evaluator()(role(2), role(1), both, part)

  class Killed(BaseException):
    pass

  def sample(*args):
    if next(calls, None) is None:
      raise Killed
    return real(*args)

  asked, real, calls = [], engine().sample, iter(range(batch))
  whole, now = measured(), standing.Standing({}, {})
  kept = so_far.SoFar(tmp_path, now, lambda: None)
  with monkeypatch.context() as patches, pytest.raises(Killed), kept:
    patches.setattr(engine(), "sample", sample)
    measured(kept.part("policy"))
  asked.clear()
  with so_far.SoFar(tmp_path, now, lambda: None) as kept:
    assert measured(kept.part("policy")) == whole
  rest = ["row 3", "row 1", "row 4", "row 0", "row 2"][4 * batch :]
  assert asked == rest


def test_same_key_gives_the_same_and_another_does_not():
  first, second = (
    evaluator()(role(2), role(1), None),
    evaluator()(role(2), role(1), None),
  )
  assert first == second
  texts = [row["response"] for row in first[1]]
  assert texts != [row["response"] for row in evaluated(2, key=1)[1]]


def test_sampler_follows_a_changed_adapter_without_a_new_trace():
  """It samples with the policy it is given, not with its first one."""
  one = [row["response"] for row in evaluated(1)[1]]
  two = [row["response"] for row in evaluated(2)[1]]
  assert one != two
  assert all(f.traces == 1 for f in engine().compiled)
  assert len(engine().compiled) == 3


def test_row_is_measured_on_its_own_response():
  """Against the functions of `roles`, one row without padding."""
  for row in evaluated(2)[1]:
    number = int(row["prompt"].split()[-1])
    ids = np.array([int(i) for i in row["response"].split()], np.int32)
    assert row["length"] == len(ids)
    assert row["stopped"] == (ids[-1] in SAMPLING.stop_ids)
    assert not np.isin(ids[:-1], SAMPLING.stop_ids).any()
    # The row alone, behind its end nothing that counts.
    padded = np.zeros(6, np.int32)
    padded[: len(ids)] = ids
    args = (
      PROMPTS[number][None], np.array([3], np.int32), padded[None],
      (np.arange(6) < len(ids))[None],
    )  # fmt: skip
    logprobs, entropy, scores = alone()(args)
    kl = (logprobs[0] - logprobs[1])[0, : len(ids)].sum()
    np.testing.assert_allclose(row["kl"], kl, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
      row["entropy"], entropy[0, : len(ids)].mean(), rtol=1e-4
    )
    np.testing.assert_allclose(row["reward"], scores[0], rtol=1e-4, atol=1e-5)


@functools.cache
def alone():
  """Log-probs of policy and anchor, entropy and score of rollouts."""

  def measure(args):
    sequence = roles.with_response(*args)
    policy, anchor, reward = (
      params.combine(r.trainable, r.frozen)
      for r in (role(2), role(1), role(3, head=True))
    )
    scores = [
      roles.response_logprobs(
        BACKBONE, tree, sequence, response_len=6, temperature=0.8, entropy=True
      )
      for tree in (policy, anchor)
    ]
    mask = jnp.pad(args[3], ((0, 0), (3, 0)))
    reward = roles.response_scores(
      BACKBONE, reward, sequence, mask, max_response=6
    )
    return [s.logprobs for s in scores], scores[0].entropy, reward

  jitted = jax.jit(measure)
  return lambda args: jax.device_get(jitted(args))


def test_means_are_over_the_rows_that_have_them():
  metrics, rows = evaluated(2)
  assert metrics["even"] == 1.0
  assert metrics["long"] == np.mean([r["judgements"]["long"] for r in rows])
  assert metrics["reward"] == pytest.approx(
    np.mean([r["reward"] for r in rows])
  )
  assert metrics["kl_per_token"] == pytest.approx(
    sum(r["kl"] for r in rows) / sum(r["length"] for r in rows)
  )
  assert metrics["stop_rate"] == np.mean([r["stopped"] for r in rows])
  without, _ = evaluator()(role(2), role(1), None)
  assert set(metrics) - set(without) == {"reward"}


def test_several_responses_to_each_prompt_without_an_anchor():
  """Every response is measured beside its own prompt; see `alone`."""
  spec = dataclasses.replace(SAMPLING, group=2)
  several = engine_lib.Engine(BACKBONE, spec, role(3, head=True))
  evaluate = policy_evaluation.PolicyEvaluator(
    several,
    mesh=mesh(),
    batches=batches,
    rows=ROWS,
    tokenization=Words(),
    checker=checker,
    key=jax.random.key(0),
  )
  model = rewards.Rewarder(role(3, head=True), several.rewards, None)
  metrics, rows = evaluate(role(2), None, model)
  assert [row["row"] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
  assert len({row["response"] for row in rows}) > 5
  for row in rows:
    ids = np.array([int(i) for i in row["response"].split()], np.int32)
    padded = np.zeros(6, np.int32)
    padded[: len(ids)] = ids
    args = (
      PROMPTS[row["row"]][None], np.array([3], np.int32), padded[None],
      (np.arange(6) < len(ids))[None],
    )  # fmt: skip
    logprobs, _, scores = alone()(args)
    np.testing.assert_allclose(row["reward"], scores[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
      row["logprob"], logprobs[0][0, : len(ids)].sum(), rtol=1e-4, atol=1e-4
    )
    assert not {"kl", "entropy"} & set(row)
  assert not {"kl", "kl_per_token", "entropy"} & set(metrics)


@pytest.mark.parametrize(
  "ids, share",
  [
    ([], 0.0),
    ([1, 2, 3], 0.0),
    ([1, 2, 3, 4, 5], 0.0),
    ([7] * 5, 1 / 2),
    ([1, 2, 1, 2, 1, 2, 1], 2 / 4),
  ],
)
def test_repetition_is_the_share_of_4_grams_seen_before(ids, share):
  assert rollout_metrics.repetition(ids) == pytest.approx(share)


def test_side_by_side_pairs_rows_of_one_prompt():
  (anchor, policy) = evaluated(1)[1], evaluated(2)[1]
  rows = policy_evaluation.side_by_side(anchor, policy)
  assert len(rows) == 5
  for row, before, after in zip(rows, anchor, policy, strict=True):
    assert row["anchor"] == before["response"]
    assert row["policy"] == after["response"]
    assert row["policy_kl"] == after["kl"]
    assert row["anchor_reward"] == before["reward"]
    assert row["policy_long"] == after["judgements"]["long"]
  with pytest.raises(ValueError, match="zip"):
    policy_evaluation.side_by_side(anchor[:3], policy)


def test_comparison_of_before_and_after():
  before = {"kl": 0.0, "kl_per_token": 0.0, "reward": 1.0, "gold": 0.25}
  after = {"validation/kl": 0.5, "validation/kl_per_token": 0.1,
           "validation/reward": 2.0, "validation/gold": 0.5}  # fmt: skip
  assert policy_evaluation.compare(before, after) == {
    "kl": 0.5, "kl_per_token": 0.1, "kl_at_step_0": 0.0,
    "reward_before": 1.0, "reward_after": 2.0,
    "gold_before": 0.25, "gold_after": 0.5,
  }  # fmt: skip
