"""The model card of an export, from what a workdir says of its stage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perl_jax.data.sources import registry
from perl_jax.data.text import recipe
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.interop import licences, model_card, pretrained
from perl_jax.interop import usage as usage_lib
from perl_jax.reporting import vocabulary
from perl_jax.tasks.initial import restore
from perl_jax.tasks.initial.model import Start
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import facts


def text(
  config: shared.Config,
  start: Start,
  which: str,
  found: dict[str, float],
  usage: str,
  name: str,
) -> str:
  """README.md of an export: what it is, how it was trained, how to load it.

  Args:
    config: Config of the export.
    start: The model.
    which: "best" or "last": its checkpoint.
    found: What was measured of the export.
    usage: Markdown that says how the model is used.
    name: Name of its directory.
  """
  init = Path(config.init)
  trained, measured = facts.settings(init), facts.measured(init, which)
  settings: dict[str, Any] = {"stage": trained.pop("task", "third party")}
  if start.role.adapter is not None:
    lora = start.role.lora
    settings["LoRA"] = f"rank {lora.rank}, alpha {lora.alpha}, {lora.targets}"
  if config.combine:
    settings["weights"] = "average of an ensemble"
  checkpoint = measured.pop("checkpoint", "")
  if checkpoint:
    settings["checkpoint"] = checkpoint
  base = restore.origin(start.source)
  place = base["path"] if base["kind"] in pretrained.KINDS else ""
  licence = licences.Licence(licences.UNKNOWN)
  if place:
    licence = licences.licence_of(pretrained.place_of(place))
  return model_card.model_card(
    config.role,
    config.format,
    model_card.Facts(
      name=config.push.rpartition("/")[2] or name,
      settings=settings | trained,
      data=data_of(trained.get("data")),
      measured=measured | found,
      results=results_of(measured, settings["stage"]),
      checkpoint=checkpoint,
      base=config.base_id or licences.hub_name(place),
      base_place=place and pretrained.place_of(place).name,
      licence=licence,
    ),
    usage=usage,
  )


def data_of(name: str | None) -> model_card.Data | None:
  """What a card says of the data set of a stage."""
  source = registry.describe().get(name)
  if source is None:
    return None
  own = name == "jsonl"
  return model_card.Data(
    name=name,
    about="rows of whoever has trained it" if own else source.about,
    licence=licences.UNKNOWN if own else source.licence,
    hub=source.hub,
    notice=source.notice,
  )


def results_of(
  measured: Mapping[str, Any], stage: str
) -> list[model_card.Result]:
  """The numbers of the model itself, not of what it was trained from."""
  return [
    model_card.Result(
      key.removesuffix("_after"),
      vocabulary.label_of(key.removesuffix("_after"), stage),
      value,
    )
    for key, value in measured.items()
    if isinstance(value, int | float)
    and not key.endswith(("_before", *model_card.ENDS))
  ]


def usage_of(
  config: shared.Config,
  start: Start,
  tokenization: tokenization_lib.Tokenization,
  nested: bool,
) -> str:
  """Markdown that says how others run the model.

  Args:
    config: Config of the export.
    start: The model that is exported.
    tokenization: Tokenizer of that model.
    nested: Whether it is an adapter on a model that sees images too.
  """
  if config.role == "policy":
    return usage_lib.policy_usage(
      "nested" if nested else config.format,
      tokenization.stop_ids,
      chat=tokenization.has_template,
    )
  closing = recipe.closing_text(tokenization.template)
  return usage_lib.reward_usage(
    config.format,
    end=None if tokenization.has_template else tokenization.stop[1],
    closing=closing,
    at_turn=start.score_at == "turn",
  )
