"""The chat template of a reward model that is exported.

Others render a whole conversation with the template and score it at its last
token. The rendering has to end where the model was trained to be read, and may
not depend on the day.
"""

import json
from collections.abc import Mapping
from typing import Any


def with_defaults(template: str, variables: Mapping[str, Any]) -> str:
  """Returns a template with values for variables that it is not given.

  Args:
    template: A chat template.
    variables: Values by name; those that it does not read are left out.
  """
  lines = [
    f"{{% if {name} is not defined %}}"
    f"{{% set {name} = {json.dumps(value)} %}}{{% endif %}}\n"
    for name, value in variables.items()
    if name in template
  ]
  return "".join(lines) + template


def ending_with(template: str, closing: str, stop: str) -> str:
  """Returns a template whose conversations end differently.

  Those that end with an assistant turn lose `closing` and end with `stop`; a
  generation prompt and other conversations are as before.

  Args:
    template: A chat template.
    closing: Text that the template writes at the end of a conversation.
    stop: Text that is written in its place, or "".
  """
  # `{% set %}` begins a line, as the template did; no line is added to it.
  inner = template.removesuffix("\n")
  kept = f"scored[:-{len(closing)}]" if closing else "scored"
  added = f"{{{{- {json.dumps(stop)} }}}}" if stop else ""
  return (
    f"{{% set scored %}}\n{inner}{{%+ endset %}}"
    "{% if not add_generation_prompt and messages"
    " and messages[-1]['role'] == 'assistant' %}"
    f"{{{{- {kept} }}}}{added}"
    "{% else %}{{- scored }}{% endif %}"
  )
