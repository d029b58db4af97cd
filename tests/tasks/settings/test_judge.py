"""Who judges, as a config says it."""

import pytest

from configs import judge as judge_config
from configs import rl as rl_config
from perl_jax.tasks.settings import judge


def config(data_set="coffee_bar", **fields):
  found = judge_config.get_config(data_set)
  found.policy.init = "runs/rl"
  for name, value in fields.items():
    found[name] = value
  return found.lock()


@pytest.mark.parametrize(
  "text, expected",
  [
    ("gold", [("check", "gold", "gold")]),
    ("reward:runs/other/", [("reward", "runs/other/", "other")]),
    ("reward:~/a b-1", [("reward", "/home/me/a b-1", "a_b_1")]),
    ("endpoint", [("endpoint", "", "endpoint")]),
    ("endpoint:org/m-1.5", [("endpoint", "org/m-1.5", "endpoint_org_m_1_5")]),
    ("mine.judges:f", [("function", "mine.judges:f", "f")]),
    ("./x/mine.py:f.g", [("function", "./x/mine.py:f.g", "f_g")]),
    ("http://h:1/score", [("function", "http://h:1/score", "server")]),
    (
      '("gold", "reward:a/x", "reward:b/x")',
      [
        ("check", "gold", "gold"),
        ("reward", "a/x", "x"),
        ("reward", "b/x", "x_2"),
      ],
    ),
    ('["gold"]', [("check", "gold", "gold")]),
  ],
)
def test_names_of_judges(text, expected, monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  found = judge.judges_of(config(judges=text))
  assert [(j.kind, j.of, j.label) for j in found] == expected


@pytest.mark.parametrize(
  "text, data_set, texts",
  [
    ("", "jsonl", ("config.judges is empty", "reward:WORKDIR")),
    ("golt", "coffee_bar", ("'golt' is no judge", "Did you mean 'gold'")),
    ("endpint", "coffee_bar", ("Did you mean 'endpoint'",)),
    ("gold", "hh_rlhf", ("hh_rlhf has no check 'gold'", "coffee_bar has")),
    ("gold", "taskmaster_coffee", ("valid_json, known_api, exact_match",)),
    ("reward:", "coffee_bar", ("names no workdir",)),
    (
      "(gold, reward:x)",
      "coffee_bar",
      ("no list of names", "--config.judges="),
    ),
    ("()", "coffee_bar", ("no list of names",)),
  ],
)
def test_names_that_are_none(text, data_set, texts):
  with pytest.raises(ValueError, match=r"config\.judges") as caught:
    judge.judges_of(config(data_set, judges=text))
  for part in texts:
    assert part in str(caught.value)


@pytest.mark.parametrize(
  "fields, text",
  [
    ({"policy": {"init": ""}}, "config.policy.init is empty"),
    ({"against": {"init": ""}}, "config.against.init is empty"),
    ({"against": {"init": "ancor"}}, "Did you mean 'anchor'?"),
    ({"against": {"init": "/no/such"}}, "there is no such workdir"),
    ({"same_rows": "no"}, "config.same_rows='no': choose one of"),
    (
      {"endpoint": {"key_variable": "sk-123"}},
      "config.endpoint.key_variable is no name of an environment variable",
    ),
  ],
)
def test_fields(fields, text):
  found = judge_config.get_config()
  found.policy.init = "runs/rl"
  judge.check(found)
  found.update(fields)
  with pytest.raises(ValueError) as caught:
    judge.check(found)
  assert text in str(caught.value)
  assert "sk-123" not in str(caught.value)


def beside(**fields):
  found = rl_config.get_config("coffee_bar")
  found.judge.update(fields.pop("judge", {}))
  found.update(fields)
  return found.lock()


def test_a_judge_beside_the_reward():
  found = judge.beside_reward(beside(judge={"by": "gold"}))
  assert (found.kind, found.label) == ("check", "gold")
  assert judge.beside_reward(beside()) is None
  judge.check_beside_reward(beside())
  judge.check_beside_reward(beside(judge={"by": "gold"}, best="judge"))


@pytest.mark.parametrize(
  "fields, text",
  [
    ({"best": "juge"}, "config.best='juge': choose one of"),
    ({"best": "judge"}, "config.judge.by is empty: name a judge"),
    ({"judge": {"by": "golt"}}, "config.judge.by: 'golt' is no judge."),
    ({"judge": {"by": '("gold", "mine:f")'}}, "names 2 judges"),
    ({"judge": {"same_rows": "no"}}, "config.judge.same_rows='no'"),
    ({"judge": {"endpoint": {"key_variable": "a key"}}},
     "config.judge.endpoint.key_variable is no name"),
    ({"judge": {"reward": {"combine": "max"}}},
     "config.judge.reward.combine='max': choose one of"),
  ],
)  # fmt: skip
def test_fields_beside_the_reward(fields, text):
  with pytest.raises(ValueError) as caught:
    judge.check_beside_reward(beside(**fields))
  assert text in str(caught.value)


def test_both_commands_read_and_ask_judges_by_the_same_fields():
  mine, other = beside().judge.to_dict(), judge_config.get_config().to_dict()
  assert set(mine) - {"by", "rows"} <= set(other)
  for name in set(mine) - {"by", "rows"}:
    assert mine[name] == other[name]
