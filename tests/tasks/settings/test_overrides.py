"""What is said of overrides that cannot be parsed."""

import ast

import pytest

from perl_jax.tasks.settings import overrides


@pytest.mark.parametrize(
  ("value", "several", "one"),
  [
    ("/a,/b", '("/a","/b")', '("/a,/b",)'),
    ("/a, /b", '("/a","/b")', '("/a, /b",)'),
    ("(/a,/b)", '("/a","/b")', '("(/a,/b)",)'),
  ],
)
def test_values_that_are_not_quoted(value, several, one):
  """The flag that is advised is the field's own, and works."""
  asked = ["main", "--config=report"]
  message = overrides.refusal([*asked, f"--config.runs={value}"])
  assert message.startswith(f"--config.runs={value}: ")
  assert "--flag" not in message
  for advised in (several, one):
    assert f"--config.runs='{advised}'" in message
    found = overrides.config_of([*asked, f"--config.runs={advised}"])
    assert found.runs == ast.literal_eval(advised)
