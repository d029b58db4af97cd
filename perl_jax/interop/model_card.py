"""The model card of an exported directory: README.md as model hubs read it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from perl_jax.interop import licences

_KINDS = {"policy": "policy", "reward": "reward model"}
_FORMS = {
  "adapter": "as an adapter",
  "merged": "merged",
  "gguf": "for llama.cpp and Ollama",
}
_LIBRARIES = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}
_TASKS = {"policy": "text-generation", "reward": "text-classification"}
# What the names of the ends of a number's interval end in.
ENDS = ("_low", "_high")
_TAGS = ("perl", "rlhf", "perl_jax")
_INTENDED = {
  "policy": (
    "It responds to conversations like those it was trained on. It was trained"
    " to get a higher reward, or to be preferred, and not to know more than its"
    " base does."
  ),
  "reward": (
    "It scores responses to conversations like those it was trained on: to"
    " train a policy, to choose among several responses to one prompt, or to"
    " compare two. A score has no meaning by itself, only beside that of"
    " another response to the same prompt."
  ),
}
_LIMITS = {
  "policy": (
    "- What it says can be wrong, offensive or unsafe, as that of its base and"
    " of the data can. Nobody has checked its safety.\n"
    "- A reward model has errors, and a policy learns to exploit them: a higher"
    " reward is not always a better response.\n"
    "- Languages, topics and lengths that the data do not have were not tried."
  ),
  "reward": (
    "- It has learned the preferences in its data, with their noise and their"
    " biases, such as one for longer responses.\n"
    "- A policy that is trained against it finds its errors: look at"
    " responses, and at another judge, beside its scores.\n"
    "- Languages, topics and lengths that the data do not have were not tried."
  ),
}


class Result(NamedTuple):
  """A number that was measured of the model that is exported.

  Attributes:
    metric: Its name, such as "accuracy".
    label: What people call it.
    value: The number.
  """

  metric: str
  label: str
  value: float


class Data(NamedTuple):
  """What a model was trained on.

  Attributes:
    name: Name of the data set.
    about: One line on its contents.
    licence: Its licence.
    hub: Its name on the Hugging Face hub, or "".
    notice: What to know before reading it, as a sentence, or "".
  """

  name: str
  about: str
  licence: str
  hub: str = ""
  notice: str = ""


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a card says of a model beside how it is used.

  Attributes:
    name: Name of the model.
    settings: How it was trained, by name, in the order they are shown.
    data: Description of the rows that it was trained on; None if they are
      not known.
    measured: Numbers by name: those of the model, of what it was trained from,
      and of the export. NAME_low and NAME_high are the ends of a 95% interval.
    results: Those that are the model's own, on held-out rows of the data.
    checkpoint: Which checkpoint `measured` is of, or "".
    base: Name of the base on the hub, or "".
    base_place: Where the base was, for people; "" if there is none.
    licence: Licence of the base.
  """

  name: str
  settings: Mapping[str, Any]
  data: Data | None
  measured: Mapping[str, Any]
  results: Sequence[Result]
  checkpoint: str
  base: str
  base_place: str
  licence: licences.Licence


def model_card(role: str, form: str, facts: Facts, *, usage: str) -> str:
  """Text of README.md: front matter for the hub, then sections for people.

  Args:
    role: "policy" or "reward".
    form: "adapter", "merged" or "gguf".
    facts: What is known of the model.
    usage: Markdown that says how the model is used.
  """
  kind = _KINDS[role]
  parts = [
    f"---\n{card_data(role, form, facts).to_yaml()}\n---",
    f"# {kind.capitalize()} trained with perl_jax",
    f"A {kind}, {_FORMS[form]} (PERL, arXiv:2403.10704).",
    "## Use",
    usage,
    "## Training",
    _table(facts.settings),
    "## Data",
    _data_text(facts.data),
    "## Metrics",
    _metrics_text(facts),
    "## Intended use",
    _INTENDED[role],
    "## Limits",
    _LIMITS[role],
    "## Licence",
    _licence_text(facts),
  ]
  return "\n\n".join(filter(None, parts)) + "\n"


def card_data(role: str, form: str, facts: Facts) -> ModelCardData:
  """The front matter of a card, as the hub's client reads and writes it."""
  data, task = facts.data, _TASKS[role]
  results = None
  if data is not None and facts.results:
    results = [
      EvalResult(
        task_type=task,
        dataset_type=data.hub or data.name,
        dataset_name=data.name,
        dataset_split="validation",
        metric_type=result.metric,
        metric_name=f"{result.label} ({facts.checkpoint})",
        metric_value=result.value,
      )
      for result in facts.results
    ]
  licence = facts.licence
  return ModelCardData(
    base_model=facts.base or None,
    datasets=[data.hub] if data is not None and data.hub else None,
    eval_results=results,
    library_name=_LIBRARIES[form],
    license=licence.id,
    license_name=licence.name or None,
    license_link=licence.link or None,
    model_name=facts.name,
    pipeline_tag=task,
    tags=list(_TAGS),
  )


def _table(rows: Mapping[str, Any]) -> str:
  lines = ["| | |", "| --- | --- |"]
  for name, value in rows.items():
    lines.append(f"| {name} | {_shown(value)} |")
  return "\n".join(lines)


def _shown(value: Any) -> str:
  return f"{value:.6g}" if isinstance(value, float) else str(value)


def _with_intervals(measured: Mapping[str, Any]) -> dict[str, Any]:
  """One row for a number and the ends of its interval."""
  rows = dict(measured)
  for name, value in measured.items():
    ends = [f"{name}{end}" for end in ENDS]
    if all(end in measured for end in ends):
      low, high = (_shown(rows.pop(end)) for end in ends)
      rows[name] = f"{_shown(value)} (95% interval: {low} to {high})"
  return rows


def _data_text(data: Data | None) -> str:
  if data is None:
    return "What it was trained on is not known."
  text = f"`{data.name}`: {data.about}. Licence of the data: {data.licence}."
  return f"{text} {data.notice}".strip()


def _metrics_text(facts: Facts) -> str:
  if not facts.measured:
    return "Nothing has been measured of this checkpoint."
  of = f"Of the checkpoint {facts.checkpoint}, on held-out rows of the data."
  rows = _table(_with_intervals(facts.measured))
  return f"{of}\n\n{rows}" if facts.checkpoint else rows


def _licence_text(facts: Facts) -> str:
  where = f"`{facts.base or facts.base_place}`"
  if not facts.base_place:
    return (
      "The model has no base of others. Its licence is unknown: whoever has"
      " trained it says what it is."
    )
  if facts.licence.id == licences.UNKNOWN:
    return (
      f"The licence of the base, {where}, is unknown: none of its files names"
      " one. It holds for this model too."
    )
  return (
    f"The licence of the base, {where}, is {facts.licence}. It holds for this"
    " model too."
  )
