"""Changes of a chat template; `test_recipe` renders with them."""

from perl_jax.data.text import score_template


def test_only_variables_that_a_template_reads_have_defaults():
  found = score_template.with_defaults("{{ a }}", {"a": False, "b": 1})
  assert found.endswith("\n{{ a }}") and "set a = false" in found
  assert "set b" not in found
