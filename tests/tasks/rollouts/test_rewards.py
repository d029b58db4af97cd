"""What a response is worth: models, functions, and both; errors by name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from perl_jax import roles, sharding
from perl_jax.data import records
from perl_jax.data.sources.coffee_bar import rows as rows_lib
from perl_jax.tasks.evaluation import policy as policy_evaluation
from perl_jax.tasks.rollouts import reward_function, rewards
from perl_jax.tasks.settings import rl as rl_settings
from perl_jax.tasks.training import together
from tests.tasks.evaluation import test_policy

HERE = "tests.tasks.rollouts.test_rewards"


ROWS = rows_lib.load("prompts", size=1, validation_size=5).validation


# Functions that a config may name.


SEEN = []  # ids of the rows of each call of `length`


def length(prompts, responses, rows):
  assert len(prompts) == len(responses) == len(rows)
  SEEN.append([row["id"] for row in rows])
  return [float(len(response)) for response in responses]


def as_array(prompts, responses, rows):
  """Also spoils what it was given: that must not reach the data."""
  for row in rows:
    row["reference"] = "spoilt"
    row["prompt"][0]["content"] = "spoilt"
  return jnp.arange(len(responses))


def one_short(prompts, responses, rows):
  return [0.0] * (len(responses) - 1)


def one_number(prompts, responses, rows):
  return 1.0


def no_numbers(prompts, responses, rows):
  return ["good" for _ in responses]


def not_finite(prompts, responses, rows):
  return [float("nan") if i else 1.0 for i in range(len(responses))]


def raising(prompts, responses, rows):
  return [1.0 / len(response.split()[99]) for response in responses]


NOT_A_FUNCTION = 3


def test_a_function_is_given_messages_text_and_rows():
  calls = []

  def spy(prompts, responses, rows):
    calls.append((prompts, responses, rows))
    return [1, 2]

  rows = ROWS[:2]
  found = reward_function.RewardFunction("x:y", spy)(rows, ["a", "b"])
  assert found.dtype == np.float32 and found.tolist() == [1.0, 2.0]
  ((prompts, responses, given),) = calls
  assert prompts == [list(row.prompt) for row in rows]
  assert prompts[0][0].keys() == {"role", "content"}
  assert responses == ["a", "b"]
  assert [records.Prompt(**row) for row in given] == rows


def test_a_function_may_return_an_array_and_cannot_spoil_the_rows():
  before = [repr(row) for row in ROWS]
  found = reward_function.load(f"{HERE}:as_array")(ROWS, ["x"] * 5)
  assert found.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
  assert [repr(row) for row in ROWS] == before


def test_gold_reward_is_the_judge():
  gold = reward_function.load("perl_jax.data.coffee_bar:gold_reward")
  responses = [ROWS[0].reference, ROWS[0].reference, "latte", "", "{}"]
  expected = [
    rows_lib.check_response(row, text)["gold"]
    for row, text in zip(ROWS, responses, strict=True)
  ]
  assert gold(ROWS, responses).tolist() == expected
  assert expected[0] == 1.0 and set(expected[1:]) == {0.0}


@pytest.mark.parametrize(
  "name, texts",
  [
    ("coffee_bar", ("'coffee_bar'", "package.module:function")),
    (":length", ("package.module:function",)),
    ("no_such_module:f", ("importing no_such_module failed", "PYTHONPATH")),
    (f"{HERE}:lenth", ("has no 'lenth'", "length")),
    (f"{HERE}:NOT_A_FUNCTION", ("is a int, not a function",)),
    (f"{HERE}:one_short", ("given 2 responses", "list of shape (1,)")),
    (f"{HERE}:one_number", ("returned float of shape ()", "list of 2")),
    (f"{HERE}:no_numbers", ("returned list", "2 numbers")),
    (f"{HERE}:not_finite", ("returned nan", ROWS[1].id, "finite")),
    (f"{HERE}:raising", ("failed on 2 responses", "IndexError", ROWS[0].id)),
  ],
)
def test_functions_that_cannot_be(name, texts):
  """Before anything is computed: a few references are judged at the start."""
  with pytest.raises(ValueError) as caught:
    reward_function.load_and_try(name, ROWS)
  for text in (f"config.reward.fn={name!r}", *texts):
    assert text in str(caught.value)


# A rewarder, with scores that are given.

SCORES = np.array([[2.0, -1.0, 0.5], [5.0, 4.0, 3.0]], np.float32)
ARGS = (
  np.zeros((3, 2), np.int32),
  np.full(3, 2, np.int32),
  np.array([[7, 8], [9, 1], [1, 2]], np.int32),
  np.array([[1, 1], [1, 1], [1, 0]], bool),
)
MESSAGES = [
  records.Prompt(f"row {i}", "", ({"role": "user", "content": "x"},), None)
  for i in range(4)
]


@functools.cache
def mesh():
  return sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])


def rewarder(scores=None, function=None, **options):
  model = None
  if scores is not None:
    members = scores.shape[0] if scores.ndim == 2 else 1
    model = roles.Role(None, "trainable", "frozen", members)

  def score(trainable, frozen, *args):
    assert (trainable, frozen) == ("trainable", "frozen")
    return jnp.asarray(scores)

  return rewards.Rewarder(
    model,
    score,
    function and reward_function.RewardFunction("x:y", function),
    tokenization=test_policy.Words(),
    mesh=mesh(),
    **options,
  )


def parts(found, index=(0, 1, 2)):
  index = np.array(index, np.int32)
  with jax.set_mesh(mesh()):
    measured = found.measure(ARGS, index, MESSAGES)
    return {k: np.asarray(v) for k, v in found.parts(measured).items()}


def test_one_model_is_its_own_score():
  found = parts(rewarder(SCORES[0]))
  assert found.keys() == {"reward"}
  np.testing.assert_array_equal(found["reward"], SCORES[0])


def test_a_function_alone_sees_the_response_up_to_its_mask():
  seen = []

  def function(prompts, responses, rows):
    seen.extend(zip((row["id"] for row in rows), responses, strict=True))
    return [10.0, 20.0]

  found = parts(rewarder(None, function, fn_weight=0.5), index=(3, -1, 0))
  assert found.keys() == {"reward"}
  assert found["reward"].dtype == np.float32
  assert found["reward"].tolist() == [5.0, 0.0, 10.0]
  assert seen == [("row 3", "7 8"), ("row 0", "1")]


def test_a_response_is_read_as_one_to_its_own_prompt():
  asked = [
    records.Prompt(f"row {i}", "", ({"role": "user", "content": str(i)},), None)
    for i in range(4)
  ]
  found = rewarder(None, lambda prompts, responses, rows: [1.0, 1.0])
  with jax.set_mesh(mesh()):
    found.measure(ARGS, np.array([3, -1, 0], np.int32), asked)
  assert found._tokenization.answered == [asked[3].prompt, asked[0].prompt]


def test_model_and_function_add_up():
  found = parts(rewarder(SCORES[0], length, fn_weight=2.0))
  # "7 8", "9 1" and "1".
  np.testing.assert_array_equal(found["reward_fn"], [6.0, 6.0, 2.0])
  np.testing.assert_array_equal(found["reward_model"], SCORES[0])
  np.testing.assert_array_equal(found["reward"], SCORES[0] + [6, 6, 2])


def test_several_functions_are_a_weighted_sum_and_metrics_of_their_own():
  def of(values):
    return reward_function.RewardFunction("x:y", lambda *_: values)

  functions = (
    rewards.Weighted("long", 0.5, of([1.0, 2.0, 3.0])),
    rewards.Weighted("right", -1.0, of([0.0, 1.0, 1.0])),
    rewards.Weighted("seen", 0.0, of([7.0, 7.0, 7.0])),
  )
  made = rewards.Rewarder(
    None, None, functions, fn_weight=2.0,
    tokenization=test_policy.Words(), mesh=mesh(),
  )  # fmt: skip
  found = parts(made)
  expected = {
    "reward_fn_long": [1.0, 2.0, 3.0],
    "reward_fn_right": [0.0, 1.0, 1.0],
    "reward_fn_seen": [7.0, 7.0, 7.0],
    "reward": [1.0, 0.0, 1.0],
  }
  assert {name: values.tolist() for name, values in found.items()} == expected
  assert rewards.part_names(found) == [
    "reward", "reward_fn_long", "reward_fn_right", "reward_fn_seen",
  ]  # fmt: skip
  with jax.set_mesh(mesh()):
    measured = jax.device_get(made.measure(ARGS, np.arange(3), MESSAGES))
  rows = made.finalise([measured.of(i) for i in range(3)])
  assert [row["reward_fn_long"] for row in rows] == [1.0, 2.0, 3.0]
  assert [row["reward"] for row in rows] == expected["reward"]


def test_shift_and_penalty_are_in_the_training_reward():
  made = rewarder(SCORES[0], unstopped_penalty=3.0)
  made.shift = 0.25
  stopped = jnp.array([False, True, True])
  np.testing.assert_allclose(
    made.training_reward(jnp.asarray(SCORES[0]), stopped),
    [2 - 3.25, -1.25, 0.25],
  )


def test_an_ensemble_is_centred_on_the_first_responses_it_judges():
  made = rewarder(SCORES, combine="min")
  one = rewards.Measured(np.array([1.0, 3.0], np.float32), None)
  two = rewards.Measured(np.array([0.0, 5.0], np.float32), None)
  first = made.finalise([one, two])
  # Means 0.5 and 4.0, level 2.25: centred 2.75, 1.25 and 1.75, 3.25.
  assert [row["reward"] for row in first] == [1.25, 1.75]
  assert [row["reward_spread"] for row in first] == [0.75, 0.75]
  again = made.finalise([two])  # of another policy: the centres stay
  assert again == first[1:]
  found = parts(made)
  centred = SCORES - np.array([[0.5], [4.0]]) + 2.25
  np.testing.assert_allclose(found["reward"], centred.min(axis=0))


def test_members_of_one_seed_are_centred_on_the_same_responses():
  """The first one's evaluation of their anchor is that of all."""
  members = together.Shared(2, {})
  one = rewards.Measured(np.array([1.0, 3.0], np.float32), None)
  anchor = roles.Role("backbone", {}, {}, 1)

  def evaluate(policy, anchor, made, part):
    return {"kl": 0.0} | made.finalise([one])[0], []

  found = []
  for number in (0, 1):
    made = rewarder(SCORES, combine="min")
    policy_evaluation.of_anchor(
      together.Member(number, members), 0, evaluate, anchor, anchor, made
    )
    found.append(parts(made)["reward"])
  np.testing.assert_array_equal(found[0], found[1])
  assert np.any(found[0] != parts(rewarder(SCORES, combine="min"))["reward"])


def test_finalised_rows_are_those_of_the_parts():
  made = rewarder(SCORES[0], length)
  with jax.set_mesh(mesh()):
    measured = jax.device_get(made.measure(ARGS, np.arange(3), MESSAGES))
  rows = made.finalise([measured.of(i) for i in range(3)])
  whole = parts(made)
  for i, row in enumerate(rows):
    assert row == {name: float(values[i]) for name, values in whole.items()}


def reward_config(**fields):
  values = {"init": "runs/reward", "fn": "", "fn_weight": 1.0,
            "score_at": "", "combine": "mean", "std_weight": 1.0,
            "timeout": 0.0}  # fmt: skip
  return ConfigDict({"reward": values | fields})


@pytest.mark.parametrize(
  "fields, texts",
  [
    ({"combine": "max"}, ("combine='max'", "'mean_minus_std'")),
    ({"score_at": "end"}, ("score_at='end'", "'template', 'turn'")),
    ({"init": "", "combine": "min"}, ("combine='min'", "'mean'")),
    ({"fn": "a:b", "fn_weight": 0.0}, ("fn_weight=0", "'a:b'")),
  ],
)
def test_fields_that_cannot_be(fields, texts):
  with pytest.raises(ValueError) as caught:
    rl_settings.check_reward(reward_config(**fields))
  for text in texts:
    assert text in str(caught.value)
