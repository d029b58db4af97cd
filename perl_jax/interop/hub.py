"""Pushes a directory to the Hugging Face hub, with the hub's own client.

Who pushes is its business: `hf auth login`, or the variable HF_TOKEN.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import utils

from perl_jax import buckets
from perl_jax.hosts import signals

_LOGIN = (
  "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
)


def check(repository: str) -> None:
  """Checks that a push can work; nothing is made on the hub.

  Args:
    repository: "NAME" or "OWNER/NAME".

  Raises:
    ValueError: The name is malformed, nobody is logged in, the hub does not
      answer, or the token may only read; says what to do.
  """
  try:
    utils.validate_repo_id(repository)
  except utils.HFValidationError as error:
    raise ValueError(
      f"config.push={repository!r} is no name of a repository: {error} Give"
      " NAME or OWNER/NAME."
    ) from None
  if not huggingface_hub.get_token():
    raise ValueError(
      f"config.push={repository!r}, and nobody is logged in to the hub:"
      f" {_LOGIN}."
    )
  try:
    who = huggingface_hub.HfApi().whoami()
  except Exception as error:
    raise ValueError(
      f"config.push={repository!r}, and the hub does not let us in:"
      f" {_one_line(error)} Nothing was exported. Try again later, or {_LOGIN};"
      " or leave config.push out."
    ) from None
  if _role(who) == "read":
    raise ValueError(
      f"config.push={repository!r}, and the token of {who.get('name')} may only"
      " read. Nothing was exported. Make one that may write at"
      f" {huggingface_hub.constants.ENDPOINT}/settings/tokens, and {_LOGIN}; or"
      " leave config.push out."
    )


def push(directory: Path, repository: str, *, private: bool) -> str:
  """Pushes all files of a directory in one commit.

  The repository is made if there is none; one that there is stays as visible
  as it is.

  Args:
    directory: A complete export.
    repository: See `check`.
    private: Whether a new repository is private.

  Returns:
    Where it went, for people.

  Raises:
    buckets.Written: The hub refuses; says how to push what was exported.
    signals.Stopped: The process was told to stop; says so as well.
  """
  api = huggingface_hub.HfApi()
  option = " --private" * private
  again = (
    f"To push it: hf upload {repository} {buckets.here(directory)} .{option}"
  )
  try:
    made = api.create_repo(repository, private=private, exist_ok=True)
    commit = api.upload_folder(
      repo_id=made.repo_id,
      folder_path=directory,
      commit_message="Trained with perl_jax",
    )
    hidden = api.model_info(made.repo_id).private
  except signals.Stopped as stopped:
    what = f", {directory} is written, and its push was cut short"
    raise signals.Stopped(stopped.by, what, then=again) from None
  except Exception as error:
    raise buckets.Written(
      f"{directory} is written, and could not be pushed: {_one_line(error)}"
      f" {again}"
    ) from None
  seen = "private" if hidden else "public"
  return f"{made.repo_id} ({seen}), {commit.commit_url}"


def _role(who: Mapping[str, Any]) -> str | None:
  """What a token may: "read", "write" or "fineGrained"; None if unsaid."""
  token = (who.get("auth") or {}).get("accessToken") or {}
  return token.get("role")


def _one_line(error: Exception) -> str:
  said = " ".join(str(error).split()) or type(error).__name__
  return f"{said.rstrip('.')}."
