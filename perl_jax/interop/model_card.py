"""The model card of an exported directory: README.md as model hubs read it."""

import json
from collections.abc import Mapping
from typing import Any

_KINDS = {"policy": "policy", "reward": "reward model"}
_FORMS = {
  "adapter": "as an adapter",
  "merged": "merged",
  "gguf": "for llama.cpp and Ollama",
}
_LIBRARIES = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}
_USAGE = {
  ("policy", "adapter"): """
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(".")
""",
  ("policy", "merged"): """
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(".")
""",
  ("reward", "adapter"): """
from peft import AutoPeftModelForSequenceClassification
model = AutoPeftModelForSequenceClassification.from_pretrained(
  ".", num_labels=1
)
""",
  ("reward", "merged"): """
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(".")
""",
}


def model_card(
  role: str,
  form: str,
  table: Mapping[str, Any],
  *,
  base: str | None,
  usage: str = "",
) -> str:
  """Text of README.md: front matter, a table of facts, code that loads it.

  Args:
    role: "policy" or "reward".
    form: "adapter", "merged" or "gguf".
    table: Facts by name, in the order in which they are shown.
    base: The checkpoint that the model was trained from, None if it has none.
    usage: Markdown that says how the model is used; "" is the code for `form`.
  """
  front = [
    f"library_name: {json.dumps(_LIBRARIES[form])}",
    "tags:",
    *(f"- {json.dumps(tag)}" for tag in ("perl", "rlhf", "perl_jax")),
  ]
  if base is not None:
    front.append(f"base_model: {json.dumps(base)}")
  kind = _KINDS[role]
  lines = ["---", *front, "---", ""]
  lines += [f"# {kind.capitalize()} trained with perl_jax", ""]
  lines += [f"A {kind}, {_FORMS[form]} (PERL, arXiv:2403.10704).", ""]
  lines += ["| | |", "| --- | --- |"]
  for name, value in table.items():
    shown = f"{value:.6g}" if isinstance(value, float) else str(value)
    lines.append(f"| {name} | {shown} |")
  usage = usage or f"```python\n{_USAGE[role, form].strip()}\n```"
  lines += ["", usage, ""]
  return "\n".join(lines)
