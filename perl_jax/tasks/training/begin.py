"""The beginning that every training stage shares.

From a config to the model that it starts from, its tokenizer, what is trained
of it, and the state before the first step.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from absl import logging
from jax.sharding import Mesh

from perl_jax import buckets, disk, hosts, roles, sharding, steps
from perl_jax import params as params_lib
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.data.text import train_tokenizer
from perl_jax.models import presets
from perl_jax.tasks.initial import manifest, restore, sealed
from perl_jax.tasks.initial import model as model_lib
from perl_jax.tasks.initial import trainable as trainable_lib
from perl_jax.tasks.initial.model import Start
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import batching, inputs, standing, together
from perl_jax.tasks.training import workdir as workdir_lib


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What a stage trains, before its first step; on the host or on one device.

  Attributes:
    role: The role that the stage is about.
    trainable: Trees of all roles that are trained, by name.
    summary: Entries of summary.json: what is trained, in numbers.
  """

  role: roles.Role
  trainable: Mapping[str, params_lib.Params]
  summary: dict[str, float]

  def base(self, mesh: Mesh, member: together.Member) -> params_lib.Params:
    """What the role runs on, on the mesh: one for all members of a run."""
    return member.once(
      "base", lambda: sharding.place(mesh, self.role.frozen, share=True)
    )

  def placed(self, mesh: Mesh, member: together.Member) -> roles.Role:
    """The role on the mesh, for who does not train it."""
    return dataclasses.replace(
      self.role,
      trainable=sharding.place(mesh, self.role.trainable),
      frozen=self.base(mesh, member),
    )

  def state(
    self, mesh: Mesh, optimizer: shared.Optimizer, **controls: float
  ) -> steps.TrainState:
    """The state before the first step, on the mesh.

    Args:
      mesh: Mesh of the run.
      optimizer: Optimiser of the stage.
      **controls: Scalars that the stage adapts; `TrainState.controls`.
    """
    init = steps.init_state if self.role.members == 1 else steps.init_ensemble
    state = init(
      sharding.place(mesh, dict(self.trainable)),
      optimizer.transformation,
      **controls,
    )
    return sharding.place(mesh, state)


def start(
  config: shared.Config,
  role: str,
  workdir: Path,
  kind: str,
  mesh: Mesh,
  member: together.Member = together.ALONE,
) -> tuple[Start, tokenization_lib.Tokenization]:
  """What a stage starts from, and its tokenizer.

  It is an earlier stage, a third-party checkpoint, or random weights.

  Args:
    config: Config of the stage; `config[role].init` names the earlier workdir.
    role: "policy" or "reward".
    workdir: Workdir of this stage; a tokenizer that has to be trained is kept
      there.
    kind: Kind of records whose text a new tokenizer is trained on.
    mesh: Mesh that a base is read to.
    member: The member that starts; what it starts from is read once for all.

  Raises:
    ValueError: The model has a shorter context than the data need, or too few
      embeddings for the tokenizer.
  """
  found = member.once(
    "start", lambda: _start(config, role, workdir, kind, mesh)
  )
  # What is trained here is read at the end.
  found = dataclasses.replace(found, unread_id=None)
  inputs.require_room(config, found.config.max_len)
  return found, found.load_tokenizer()


def read(
  config: shared.Config,
  member: together.Member,
  make: Callable[[], batching.Inputs],
) -> batching.Inputs:
  """The rows of a stage; those of one seed are read once for all members.

  Args:
    config: Config of the member.
    member: The member whose rows they are.
    make: `make()` reads the rows.
  """
  found = member.once(("rows", config.seed), make)
  if member.shared is None:
    return found
  return dataclasses.replace(found, train=found.train.again())


def prepare(
  config: shared.Config,
  workdir: Path,
  start: Start,
  role: str,
  stands_on: standing.Standing,
  *,
  head: str = "",
  members: int = 1,
  score_at: str = "",
  beside: Mapping[str, params_lib.Params] | None = None,
) -> Prepared:
  """Makes what a stage trains, and writes model.json and the tokenizer.

  All checks come before: a stage that cannot go on leaves its workdir as it is.

  Args:
    config: Config of the stage.
    workdir: Workdir of the stage.
    start: The base, adapter, head and tokenizer that the stage starts from.
    role: Name of the role that the stage is about.
    stands_on: What the stage is made from.
    head: Kind of scalar head, one of `settings.reward.HEADS`, or "" for none.
    members: Number of models that are trained at once.
    score_at: Where the score of a reward model is read.
    beside: Trees of other roles that are trained on the same base, by name.

  Raises:
    ValueError: The workdir has a checkpoint that was made from something else.
  """
  standing.require_same(workdir, stands_on)
  lora = shared.lora_spec(config)
  made = trainable_lib.trainable_role(
    start,
    lora=lora,
    tuning=config.tuning,
    seed=config.seed,
    head=head,
    members=members,
  )
  trainable = {role: made.trainable} | dict(beside or {})
  manifest.write_model(
    workdir,
    start,
    lora=lora,
    tuning=config.tuning,
    trained=tuple(trainable),
    init=config[role].to_dict(),
    head=head or "scalar",
    members=members,
    score_at=score_at,
  )
  summary = shared.share(made.trainable, made.frozen)
  # Its numbers are of the last checkpoint where a stage does not say otherwise.
  summary["checkpoint_step"] = config.steps
  logging.info("%s: %s", config.task, summary)
  return Prepared(made, trainable, summary)


def _start(config, role, workdir, kind, mesh) -> Start:
  init, options = config[role].init, model_lib.read_options(config, mesh)
  if init:
    return restore.load(
      init, config[role].checkpoint, role, f"{role}.init", options=options
    )
  if config.base:
    return restore.load_base(config.base, role, options)
  # A wrong name should not cost a trained tokenizer first.
  presets.preset(config.model.preset, vocab_size=1)
  tokenizer = workdir / manifest.TOKENIZER
  if config.data.tokenizer:
    tokenizer = Path(config.data.tokenizer)
  else:
    _train_tokenizer(config, kind, tokenizer)
  tokenization = tokenization_lib.load_tokenizer(tokenizer)
  # A reward model reads more of a response that was cut: its stop token, and
  # what the chat template writes after that.
  closing = 1 + len(tokenization.closing)
  model = presets.preset(
    config.model.preset,
    vocab_size=tokenization.vocab_size,
    max_len=max(
      config.data.max_len, config.data.prompt_len + config.data.response_len
    )
    + closing,
    scan_unroll=config.model.scan_unroll,
    remat=config.model.remat,
    dtype=config.model.dtype,
    attention=config.model.attention,
  )
  return model_lib.random_start(
    model, config.seed, tokenizer, config.base_dtype, mesh
  )


def _train_tokenizer(config: shared.Config, kind: str, tokenizer: Path) -> None:
  """Trains one where there is none yet, of this run.

  Before the run has its config, one that is there is of a start that was
  killed, and may be of other rows.
  """
  hosts.barrier("tokenizer looked for")
  claimed = hosts.sees(tokenizer.parent / workdir_lib.CONFIG_FILE)
  if claimed and hosts.sees(tokenizer):
    sealed.require(tokenizer.parent, tokenizer.name)
    return
  hosts.barrier("tokenizer not found")
  texts = train_tokenizer.record_texts(
    inputs.load(config.data, kind, config.seed).train
  )
  with disk.writing("the tokenizer", tokenizer):
    hosts.on_primary(
      "tokenizer",
      lambda: train_tokenizer.train_tokenizer(
        texts, config.data.vocab_size, tokenizer
      ),
    )
  buckets.renew(tokenizer)
