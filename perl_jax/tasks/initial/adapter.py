"""PEFT adapters that somebody else has trained: base, tokenizer, A and B."""

import dataclasses
import os
from pathlib import Path

from absl import logging

from perl_jax import sharding
from perl_jax.data.text import files as tokenizer_files
from perl_jax.data.text import hugging_face, unreadable
from perl_jax.interop import peft, pretrained
from perl_jax.tasks.initial import model
from perl_jax.tasks.initial.model import ReadOptions, Start

# Files that mean something together with the rest of a tokenizer only.
_PARTS = (
  "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
  "vocab.json", "merges.txt",
)  # fmt: skip


def adapter_start(
  directory: str | os.PathLike,
  field: str,
  options: ReadOptions,
  shared_with: Start | None = None,
) -> Start:
  """A PEFT adapter on the checkpoint `options.base`, or on the one it names.

  The tokenizer is the one beside the adapter, if there is one; see
  `with_tokenizer`.

  Args:
    directory: Path of a directory as PEFT's `save_pretrained` writes it.
    field: Config field that named it, for error messages.
    options: How to read the base.
    shared_with: A start whose base is shared if it is the same checkpoint.

  Raises:
    ValueError: No base is given, the adapter does not fit it, or its tokenizer
      is incomplete.
  """
  base, named = find_base(directory, field, options.base)
  under = model.checkpoint_start(base, options, shared_with)
  try:
    found = peft.load_adapter(directory, under.config)
  except ValueError as error:
    raise ValueError(
      f"config.{field}={str(directory)!r} does not load on {base} (its config"
      f" names the base {named!r}): {error}"
    ) from error
  adapter = sharding.place(options.target_mesh(), found.adapter)
  head = found.head or under.role.head or {}
  start = under.with_adapter(adapter | head, found.backbone.lora)
  start = with_tokenizer(start, Path(directory))
  return with_unread(start, Path(directory)) if head else start


def require_plain(base: str, role: str) -> None:
  """Checks that no adapter lies beside a base that is given by itself.

  `transformers` would add it to the base.

  Args:
    base: `config.base`.
    role: Role that starts from it.

  Raises:
    ValueError: There is one.
  """
  if peft.is_adapter(base):
    raise ValueError(
      f"config.base={base!r} holds a PEFT adapter ({peft.CONFIG}), which"
      f" transformers would add to it. Give the directory as"
      f" --config.{role}.init too, to start from the adapter. If it is merged"
      f" into the weights already, remove {peft.CONFIG}."
    )


def find_base(
  directory: str | os.PathLike, field: str, given: str
) -> tuple[str, str]:
  """(base to use, base that the adapter names) of an adapter.

  What is given goes before what the adapter names: an adapter does not say
  which copy of its base lies where.

  Args:
    directory: Directory of the adapter.
    field: Config field that named it, for error messages.
    given: `config.base`, or "".

  Raises:
    ValueError: Neither is there.
  """
  named = peft.base_of(directory)
  base = given or named
  where = f"config.{field}={str(directory)!r} is a PEFT adapter"
  if given and pretrained.kind_of(given) is None:
    raise ValueError(
      f"{where}, and config.base={given!r} is no checkpoint: there is no"
      " directory with a config.json, and no GGUF file."
    )
  if not given and (not named or pretrained.kind_of(named) is None):
    says = f"whose {peft.CONFIG} names no base"
    if named:
      says = f"on {named!r}, which is no checkpoint here"
    raise ValueError(
      f"{where} {says}. Give the directory of that checkpoint:"
      " --config.base=PATH."
    )
  logging.info(
    "%s is put on the base %s (%s; %s says %r).", directory, base,
    "config.base" if given else "as it names it", peft.CONFIG, named,
  )  # fmt: skip
  if given and _is_elsewhere(named, given):
    logging.warning(
      "config.%s=%r was trained on %s, which is there too, and is put on"
      " config.base=%s. If these are not the same weights, what it says is"
      " wrong: merge it into its own base with PEFT (merge_and_unload), and"
      " give that checkpoint as config.%s.",
      field,
      str(directory),
      named,
      given,
      field,
    )
  return base, named


def _is_elsewhere(named: str, given: str) -> bool:
  """Whether what an adapter names is another checkpoint than the given one."""
  if not named or Path(named).resolve() == Path(given).resolve():
    return False
  try:
    return pretrained.kind_of(named) is not None
  except ValueError:  # several files, or none that is read
    return False


def with_unread(start: Start, directory: Path) -> Start:
  """A reward model with the token that it takes for padding.

  An adapter has no config.json. Trainers pad with the token of its tokenizer;
  without a tokenizer beside the adapter the base says which it is.
  """
  if start.tokenizer == directory:
    tokenizer, _ = tokenizer_files.read(directory)
    if tokenizer.pad_token_id is not None:
      return dataclasses.replace(start, unread_id=tokenizer.pad_token_id)
  return model.with_unread(start)


def with_tokenizer(start: Start, directory: Path) -> Start:
  """A start with the tokenizer that lies beside its adapter.

  A whole tokenizer there takes the place of the base's, chat template included;
  generation goes on to stop where the base does. A chat template alone is used
  with the base's tokenizer. Without either the base's tokenizer stays. The log
  says which it is.

  Raises:
    ValueError: There is a part of a tokenizer that is none without the rest.
  """
  base, template = start.tokenizer, directory / hugging_face.TEMPLATE
  missing = unreadable.missing_file(directory)
  if not missing:
    logging.info("tokenizer: %s, beside the adapter; not %s", directory, base)
    return dataclasses.replace(start, tokenizer=directory, model_files=base)
  found = [name for name in _PARTS if (directory / name).is_file()]
  if found:
    raise ValueError(
      f"{directory} has a part of a tokenizer ({', '.join(found)}), but"
      f" {missing} Or remove that part to use the base's tokenizer, {base}."
    )
  if template.is_file():
    logging.info("tokenizer: the base's, %s, with %s", base, template)
    return dataclasses.replace(start, template=template)
  logging.info("tokenizer: the base's, %s; none beside the adapter", base)
  return start
