"""The roles that go beside a policy: reward model, value model; and placing."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from absl import logging
from jax.sharding import Mesh

from perl_jax import params as params_lib
from perl_jax import roles, sharding
from perl_jax.data.text import files as tokenizer_files
from perl_jax.data.text import hugging_face, sameness, unread
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.interop import hf_checkpoint, peft
from perl_jax.tasks.initial import model, restore
from perl_jax.tasks.initial import trainable as trainable_lib
from perl_jax.tasks.initial.model import Start
from perl_jax.tasks.settings import config_files, shared

_FIELD = "config.reward.init"
# What a tokenizer follows from; the last file is its chat template.
_TOKENIZER_FILES = (
  "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
  "added_tokens.json", hugging_face.PROCESSOR, hugging_face.TEMPLATE,
)  # fmt: skip


def place(mesh: Mesh, given: Mapping[str, roles.Role]) -> dict[str, roles.Role]:
  """Roles on the mesh, laid out by the sharding rules.

  Roles with one base share it on the mesh too. Trainable trees are copied, so
  that a step may donate one that another role started from.
  """
  bases: dict[int, params_lib.Params] = {}
  placed = {}
  for name, role in given.items():
    if id(role.frozen) not in bases:
      bases[id(role.frozen)] = sharding.place(mesh, role.frozen, share=True)
    placed[name] = dataclasses.replace(
      role,
      trainable=sharding.place(mesh, role.trainable),
      frozen=bases[id(role.frozen)],
    )
  return placed


def load_reward(config: shared.Config, policy: Start, mesh: Mesh) -> Start:
  """The reward model of `config.reward`, on the policy's base or its own.

  It shares the policy's base if it was trained on it. Any other base, such as
  that of a third-party `AutoModelForSequenceClassification`, is loaded beside
  it, and the log says how much memory that takes.

  Raises:
    ValueError: It has no head, or another tokenizer than the policy.
  """
  start = _read_reward(config, config.reward.checkpoint, mesh, policy, _FIELD)
  require_same_tokenizer(policy, start)
  if start.fingerprint == policy.fingerprint:
    role = dataclasses.replace(start.role, frozen=policy.role.frozen)
    return dataclasses.replace(start, role=role)
  logging.info(
    "reward: has a base of its own, fingerprint %s in %s (the policy's is %s in"
    " %s): %.1f MiB more. A reward model that is trained from the policy's"
    " start, on a base in the same dtype, shares it.",
    start.fingerprint[:12],
    start.source["dtype"],
    policy.fingerprint[:12],
    policy.source["dtype"],
    params_lib.nbytes(start.role.frozen) / 2**20,
  )
  return start


def read_reward(
  config: shared.Config,
  which: str,
  mesh: Mesh,
  policy: Start | None = None,
  *,
  of_tokens: bool = True,
  field: str = _FIELD,
  section: str = "config.reward",
) -> Start:
  """The reward model of `config.reward` for an evaluation, ready to score.

  Args:
    config: Config of the evaluation.
    which: "best" or "last" checkpoint.
    mesh: Mesh that a base is read to.
    policy: A model whose base is shared, if the reward model was trained on it.
    of_tokens: Whether it scores the policy's tokens; else it reads texts.
    field: Config field that names it, for errors.
    section: The section that says how it is read, for errors.

  Raises:
    FileNotFoundError: The workdir is not one of a stage that has run.
    ValueError: It is no reward model, cannot be combined as asked, or has
      another tokenizer than the policy whose tokens it scores.
  """
  start = _read_reward(config, which, mesh, policy, field, section)
  tokenization = None
  if policy is not None and of_tokens:
    require_same_tokenizer(policy, start)
    tokenization = policy.load_tokenizer()
  return read_at(start, config, tokenization)


def _read_reward(
  config, which, mesh, policy, field, section="config.reward"
) -> Start:
  """A reward model with its members as `config.reward.combine` asks for them.

  "average" makes one model of an ensemble; other ways combine its scores.
  """
  start = restore.load(
    config.reward.init,
    which,
    "reward",
    field.removeprefix("config."),
    shared_with=policy,
    options=model.read_options(config, mesh),
  )
  require_head(start, config, field)
  combine = config.reward.combine
  if start.role.members == 1 and combine != "mean":
    raise ValueError(
      f"{section}.combine={combine!r}, but {field}={config.reward.init!r} holds"
      " one reward model. Train several with --config.ensemble=4 of"
      f" {config_files.called('reward')}, or set it to 'mean'."
    )
  return trainable_lib.averaged(start) if combine == "average" else start


def require_head(
  start: Start, config: shared.Config, field: str = _FIELD
) -> None:
  """Checks that what `config.reward.init` names is a reward model.

  Args:
    start: What was read.
    config: Config of the stage.
    field: Config field that names it, for errors.

  Raises:
    ValueError: It has no scalar head.
  """
  if start.role.head is not None:
    return
  init, others = config.reward.init, []
  if hf_checkpoint.is_checkpoint(init) and not peft.is_adapter(init):
    others = hf_checkpoint.heads(init)
  others += [path.name for path in sorted(Path(init).glob("value_head.*"))]
  holds = ""
  if others:
    holds = (
      f" It holds {', '.join(others[:8])}, which is not what"
      " AutoModelForSequenceClassification reads (score.weight, with"
      " num_labels=1)."
    )
  raise ValueError(
    f"{field}={init!r} has no scalar head: it is no reward model."
    f"{holds} Train one with {config_files.called('reward')}."
  )


def read_at(
  start: Start,
  config: shared.Config,
  policy: tokenization_lib.Tokenization | None = None,
) -> Start:
  """A reward model with what it reads after a response that it scores.

  Args:
    start: The reward model.
    config: Config of RL or of an evaluation; `config.reward.score_at` comes
      before where the model was trained to be read.
    policy: Tokenizer of the policy whose responses are scored, if there is one.

  Raises:
    ValueError: Its template writes conversations otherwise than the policy's
      prompts go on.
  """
  score_at = config.reward.score_at or start.score_at
  role = dataclasses.replace(start.role, closing=None)
  if score_at == "template":
    own = start.load_tokenizer()
    skipped = own.unread
    if policy is not None and policy.unsaid:
      raise ValueError(
        f"config.reward.init={config.reward.init!r} reads whole conversations,"
        f" and those of {policy.name} have no {policy.unsaid!r} before a"
        " response, with which the policy's prompts end: it would read what it"
        " was not trained on. Give a reward model that was trained with"
        " --config.score_at=turn, which reads what is sampled, or use this one"
        " so: --config.reward.score_at=turn."
      )
    if policy is not None and not own.has_template:
      own = policy
    keeps_stop, closing = ends = unread.ending(own, skipped)
    shorter = ends != unread.ending(own, None)
    if own.has_template or shorter:
      stops = own.stop_ids if policy is None else policy.stop_ids
      closing = roles.Closing(closing, stops, keeps_stop)
      role = dataclasses.replace(role, closing=closing)
    if shorter:
      logging.info(
        "reward: its config.json pads with token %d, which ends a conversation:"
        " as in transformers, the score is that of the token before.",
        start.unread_id,
      )
  where = {"template": "chat template", "turn": "turn"}[score_at]
  logging.info("reward: a score is read at the end of the %s.", where)
  return dataclasses.replace(start, role=role, score_at=score_at)


def require_same_tokenizer(policy: Start, reward: Start) -> None:
  """Checks that a reward model takes the token ids of a policy as they are.

  The log names differences that no id of the run shows; see `data.text
  .sameness`. Conversations are scored as the policy's template renders them,
  and the log warns if the reward model's own renders them differently.

  Raises:
    ValueError: An id means another token to the reward model, or they cut text
      differently; names the first of them.
  """
  if _same_files(policy, reward):
    return
  first, _ = tokenizer_files.read(policy.tokenizer, policy.template)
  try:
    second, _ = tokenizer_files.read(reward.tokenizer, reward.template)
  except ValueError as error:
    raise ValueError(
      f"{error} If the reward model was trained with the policy's tokenizer,"
      f" copy its files from {policy.tokenizer}."
    ) from error
  found = sameness.compare(
    first, second, policy.config.vocab_size, reward.config.vocab_size
  )
  if found.problems:
    raise ValueError(
      f"{policy.tokenizer} and {reward.tokenizer} are different tokenizers, and"
      " a reward model scores the policy's token ids:"
      f" {'. '.join(found.problems)}. Train both from the same start (the same"
      " config.base), or give a reward model that has the policy's tokenizer."
    )
  for note in found.notes:
    logging.info("reward: its tokenizer is the policy's, but %s.", note)
  template = sameness.template_difference(first, second)
  if template:
    logging.warning(
      "reward: its chat template is not the policy's, which conversations are"
      " scored with: %s.",
      template,
    )


def _same_files(policy: Start, reward: Start) -> bool:
  """Whether two tokenizers lie in files of the same bytes, as copies do."""

  def contents(start):
    files = [start.tokenizer / name for name in _TOKENIZER_FILES]
    files[-1] = start.template or files[-1]
    named = start.tokenizer / hugging_face.TEMPLATES
    named = [] if start.template else sorted(named.glob("*.jinja"))
    return [f.read_bytes() if f.is_file() else None for f in files] + [
      (f.name, f.read_bytes()) for f in named
    ]

  found = contents(policy)
  same = found[0] is not None and found == contents(reward)
  return same and policy.config.vocab_size <= reward.config.vocab_size


def initial_value(
  config: shared.Config, policy: Start, reward: Start | None
) -> params_lib.Params:
  """What the value model starts from: its adapter (or whole tree) and head.

  With `config.value.init` "policy" it is the policy's start with a head of
  zeros, as in the paper; with "reward", the reward model.

  Args:
    config: Config of the RL stage.
    policy: The base and adapter that the policy starts from.
    reward: The reward model, or None if the reward is a function alone.

  Raises:
    ValueError: The reward model cannot be the value model's start; says why.
  """
  start, lora = trainable_lib.without_head(policy), shared.lora_spec(config)
  if config.value.init == "reward":
    _require_startable(config, policy, reward, lora)
    head = dict(reward.role.head[params_lib.HEAD])
    head.pop("likelihood", None)  # a state has no response to be likely
    start = reward.with_adapter(
      dict(reward.role.trainable) | {params_lib.HEAD: head},
      reward.role.lora,
    )
  elif config.value.init != "policy":
    raise ValueError(
      f"config.value.init={config.value.init!r}: choose 'policy' or 'reward'."
    )
  return trainable_lib.trainable_role(
    start,
    lora=lora,
    tuning=config.tuning,
    seed=config.seed + 1,
    head="scalar",
  ).trainable


def _require_startable(config, policy, reward, lora) -> None:
  """Checks that a reward model can be what the value model starts from."""
  if reward is None:
    raise ValueError(
      "config.value.init='reward' needs a reward model, but config.reward.init"
      " is empty. Set config.value.init='policy'."
    )
  if reward.role.members > 1:
    raise ValueError(
      "config.value.init='reward' needs one reward model, but"
      f" config.reward.init holds {reward.role.members}. Set"
      " config.value.init='policy'."
    )
  if config.tuning != "lora":
    return
  if not reward.role.shares_base(policy.role):
    raise ValueError(
      "config.value.init='reward' needs a reward model on the policy's base,"
      " which the value model shares; config.reward.init has another. Set"
      " config.value.init='policy'."
    )
  if not lora.fits(reward.role.lora):
    raise ValueError(
      "config.value.init='reward' needs a reward model with the policy's"
      f" lora {lora}; it has {reward.role.lora}."
    )
