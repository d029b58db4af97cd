"""Reward functions as people have them: files, faults, time; pure Python."""

import decimal
import os
import signal
import textwrap
import time

import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from perl_jax.data import records
from perl_jax.tasks.rollouts import reward_function, time_limit
from perl_jax.tasks.settings import reward_functions
from perl_jax.tasks.training import undone
from tests.endpoints.server import serving

ROWS = [
  records.Prompt(f"row {i}", "", ({"role": "user", "content": "x"},), "ref")
  for i in range(8)
]


def called(function, count=2, **options):
  made = reward_function.RewardFunction("mine:f", function, **options)
  return made(ROWS[:count], [f"text {i}" for i in range(count)])


def refused(function, *texts, count=2, **options):
  with pytest.raises(reward_function.RewardError) as caught:
    called(function, count, **options)
  assert isinstance(caught.value, undone.UndoneStepError)
  for text in ("config.reward.fn='mine:f' ", *texts):
    assert text in str(caught.value)


# Which functions a config names.


@pytest.mark.parametrize(
  "text, expected",
  [
    ("", []),
    ("mine:correct", [("mine:correct", 1.0, "correct")]),
    ("mine:correct=0.5", [("mine:correct", 0.5, "correct")]),
    ("./mine.py:a.b", [("./mine.py:a.b", 1.0, "a_b")]),
    (
      """("mine:length=0.2", 'mine:correct=1')""",
      [("mine:length", 0.2, "length"), ("mine:correct", 1.0, "correct")],
    ),
    (
      '["a:f=-1e-2", "b:f", "/x/c.py:f=0"]',
      [("a:f", -0.01, "f"), ("b:f", 1.0, "f_2"), ("/x/c.py:f", 0.0, "f_3")],
    ),
    (
      "http://localhost:8000/score=2",
      [("http://localhost:8000/score", 2.0, "endpoint")],
    ),
    ("https://a/b?k=1", [("https://a/b?k=1", 1.0, "endpoint")]),
  ],
)
def test_names_and_weights(text, expected):
  assert list(map(tuple, reward_functions.terms_of(text))) == expected


@pytest.mark.parametrize(
  "text, reason",
  [
    ("(mine:length, mine:correct)", "quotes, and quoted once more for the"),
    ("()", "no list of names"),
    ('("a:f", 3)', "no list of names"),
    ("mine:f=much", "'much' in 'mine:f=much' is no weight"),
    ("mine:f=nan", "'nan' in 'mine:f=nan' is no weight"),
    ("mine:f=", "'' in 'mine:f=' is no weight"),
    ('("a:f=0", "b:g=0")', "all weights are 0"),
  ],
)
def test_names_that_cannot_be(text, reason):
  with pytest.raises(ValueError, match=r"config\.reward\.fn") as caught:
    reward_functions.terms_of(text)
  assert reason in str(caught.value)


# Functions in files.


@pytest.fixture
def here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)

  def write(name, text):
    (tmp_path / name).write_text(textwrap.dedent(text))

  return write


def test_a_function_of_a_file_and_what_lies_beside_it(here):
  here("helper_of_mine.py", "SCALE = 3.0")
  here(
    "mine.py",
    """
    import dataclasses
    import helper_of_mine

    @dataclasses.dataclass
    class Judge:
      scale: float = helper_of_mine.SCALE

    def length(prompts, responses, rows):
      return [Judge().scale * len(text) for text in responses]

    async def slow_length(prompts, responses, rows):
      import asyncio
      await asyncio.sleep(0.01)
      return length(prompts, responses, rows)
    """,
  )
  for name in ("./mine.py:length", "mine.py:slow_length"):
    for _ in range(2):  # the event loop is still there for a second call
      found = reward_function.load_and_try(name, ROWS)
      assert found(ROWS[:2], ["a", "bc"]).tolist() == [3.0, 6.0]
  # A file that has changed is read again.
  here("mine.py", "def length(prompts, responses, rows):\n  return [9, 9]")
  again = reward_function.load("./mine.py:length")
  assert again(ROWS[:2], ["a", "b"]).tolist() == [9.0, 9.0]


@pytest.mark.parametrize(
  "source, texts",
  [
    ("def f(p, r, rows):\n  x = {}\n  return x['k']",
     ("in mine.py, line 3 (`return x['k']`)", "KeyError", "row 0")),
    ("import json\ndef f(p, r, rows):\n  return json.loads('{')",
     ("line 3 (`return json.loads('{')`)", "JSONDecodeError")),
    ("import sys\ndef f(p, r, rows):\n  sys.exit(3)",
     ("line 3 (`sys.exit(3)`)", "SystemExit: 3")),
    ("import no_such_thing", ("line 1 (`import no_such_thing`)", "ModuleNot")),
    ("def f(:\n  pass", ("mine.py, line 1 (`def f(:`)", "SyntaxError")),
    ("raise SystemExit('no')", ("line 1", "SystemExit: no")),
    ("def g(): pass", ("has no 'f'. It has g.",)),
  ],
)  # fmt: skip
def test_errors_show_the_line_of_the_users_file(here, source, texts):
  here("mine.py", source)
  with pytest.raises(ValueError) as caught:
    reward_function.load_and_try("./mine.py:f", ROWS)
  for text in ("config.reward.fn='./mine.py:f'", *texts):
    assert text in str(caught.value)


def test_a_file_that_is_not_there(here):
  with pytest.raises(ValueError, match=r"there is no file .*/mine\.py\. A rel"):
    reward_function.load("./mine.py:f")


# What a function returns.


def test_numbers_of_every_kind_are_numbers():
  for found in (
    [True, 0], (1, 0.0), np.array([1, 0], np.int8), np.ones(2, bool) & [1, 0],
    jnp.array([1, 0], jnp.bfloat16), [np.float32(1), jnp.float32(0)],
    [decimal.Decimal(1), 0],
  ):  # fmt: skip
    values = called(lambda *_, found=found: found)
    assert values.dtype == np.float32 and values.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
  "found, texts",
  [
    (["0.5", "1"], ("'0.5', a str and no number", "'text 0' to row row 0")),
    ([0.5, "1"], ("'1', a str and no number", "'text 1' to row row 1")),
    ([0.5, None], ("None, a NoneType and no number", "row row 1")),
    (np.array(["1", "2"]), ("a str_ and no number",)),
    ([1.0, 1e39], ("returned 1e+39, which is inf in float32,", "row row 1")),
    ([-1e39, 1.0], ("returned -1e+39, which is -inf in float32,", "row 0")),
    ([1.0, 10**400], ("returned inf", "row row 1")),
    ([1.0, 1e30], ("returned 1e+30 for the response 'text 1'", "scale them")),
    ([1.0, float("nan")], ("returned nan for the response 'text 1'",)),
    ([[1.0], [1.0, 2.0]], ("returned list that is no list of numbers",)),
    ({"a": 1}, ("returned dict of shape ()", "list of 2 numbers")),
    (None, ("returned NoneType of shape ()",)),
    ([1j, 2.0], ("1j, a complex and no number",)),
  ],
)
def test_what_is_no_reward_is_refused_by_row(found, texts):
  refused(lambda *_: found, *texts)


def test_a_function_that_draws_at_random_is_noticed(here, caplog):
  here(
    "mine.py",
    """
    import itertools
    COUNT = itertools.count()

    def drawn(prompts, responses, rows):
      return [1.0, float(next(COUNT))]

    def steady(prompts, responses, rows):
      return [1.0, 2.0]
    """,
  )
  logging.get_absl_logger().addHandler(caplog.handler)
  try:
    reward_function.load_and_try("./mine.py:steady", ROWS)
    assert not caplog.records
    reward_function.load_and_try("./mine.py:drawn", ROWS)
  finally:
    logging.get_absl_logger().removeHandler(caplog.handler)
  assert "returned 0.0 and then 1.0 for the same response to row row 1" in (
    caplog.text
  )


# Time.


def sleeping(prompts, responses, rows):
  time.sleep(30)


def spinning(prompts, responses, rows):
  while True:
    try:
      sum(range(1000))
    except Exception:
      continue


async def waiting(prompts, responses, rows):
  import asyncio

  await asyncio.sleep(30)


@pytest.mark.parametrize("function", [sleeping, spinning, waiting])
def test_a_function_that_takes_too_long_is_ended(function):
  started = time.monotonic()
  refused(
    function, "took longer than config.reward.timeout=0.2 seconds",
    # A coroutine that waits is in none of its lines.
    "" if function is waiting else "in tests/tasks/rollouts/test_reward_func",
    "on 7 responses, to the rows row 0, row 1,"
    " row 2, row 3, row 4 and 2 more. Raise config.reward.timeout",
    count=7, seconds=0.2, files=[__file__],
  )  # fmt: skip
  assert time.monotonic() - started < 10
  assert called(lambda *_: [1, 2], seconds=5.0).tolist() == [1.0, 2.0]


def test_one_that_lets_no_error_pass_is_told_again():
  told = []

  def stubborn():
    for _ in range(2):
      try:
        time.sleep(30)
      except BaseException:
        told.append(time.monotonic())
    time.sleep(30)

  with pytest.raises(time_limit.OutOfTime):
    time_limit.call(stubborn, 0.1)
  assert len(told) == 2


# Servers.


def test_a_server_is_a_function_that_process_0_calls():
  with serving() as server:
    found = reward_function.load_and_try(server.url, ROWS)
    assert found.on_primary
    assert len(server.asked) == 2  # tried twice, and not from memory
    assert found(ROWS[:2], ["abc", "d"]).tolist() == [3.0, 1.0]
    assert server.asked[-1]["rows"][1]["id"] == "row 1"
    server.plan.append((400, {}, "what?", 0))
    with pytest.raises(reward_function.RewardError) as caught:
      found(ROWS[:2], ["new", "d"])
    assert f"config.reward.fn={server.url!r} failed on 2" in str(caught.value)
    assert "EndpointError" in str(caught.value)
    slow = reward_function.load(server.url, seconds=0.3)
    server.plan.append((200, {}, None, 30))
    with pytest.raises(reward_function.RewardError, match=r"timeout=0\.3 sec"):
      slow(ROWS[:2], ["newer", "d"])


@pytest.mark.parametrize("fails", [False, True])
def test_the_directory_and_the_signals_are_those_of_before(
  tmp_path, monkeypatch, fails
):
  """A function that changes them would lose relative paths, and a stop."""
  monkeypatch.chdir(tmp_path)
  before = {number: signal.getsignal(number) for number in SIGNALS}

  def moves(prompts, responses, rows):
    os.chdir("/")
    for number in SIGNALS:
      signal.signal(number, lambda *_: None)
    if fails:
      raise KeyError("reference")
    return [1.0] * len(rows)

  if fails:
    refused(moves, "KeyError")
  else:
    assert called(moves).tolist() == [1.0, 1.0]
  assert os.getcwd() == str(tmp_path)
  assert {number: signal.getsignal(number) for number in SIGNALS} == before


SIGNALS = (signal.SIGTERM, signal.SIGINT)
