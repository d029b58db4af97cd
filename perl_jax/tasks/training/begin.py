"""The beginning that every training stage shares."""

from pathlib import Path

from jax.sharding import Mesh

from perl_jax import hosts
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.data.text import train_tokenizer
from perl_jax.models import presets
from perl_jax.tasks.initial import manifest, restore
from perl_jax.tasks.initial import model as model_lib
from perl_jax.tasks.initial.model import Start
from perl_jax.tasks.training import inputs


def start(
  config: inputs.Config, role: str, workdir: Path, kind: str, mesh: Mesh
) -> Start:
  """What a stage starts from: an earlier one, a checkpoint, or random weights.

  Args:
    config: Of the stage; `config[role].init` names the earlier workdir.
    role: "policy" or "reward".
    workdir: Of this stage; a tokenizer that has to be trained is kept there.
    kind: Kind of records whose text a new tokenizer learns from.
    mesh: Where a base that is read goes.
  """
  init, outside = config[role].init, model_lib.outside(config, mesh)
  if init:
    return restore.load(
      init, config[role].checkpoint, role, f"{role}.init", outside=outside
    )
  if config.base:
    return model_lib.checkpoint_start(config.base, outside)
  # A wrong name should not cost a trained tokenizer first.
  presets.preset(config.model.preset, vocab_size=1)
  tokenizer = workdir / manifest.TOKENIZER
  if config.data.tokenizer:
    tokenizer = Path(config.data.tokenizer)
  else:
    _train_tokenizer(config, kind, tokenizer)
  tokenization = tokenization_lib.load_tokenizer(tokenizer)
  model = presets.preset(
    config.model.preset,
    vocab_size=tokenization.vocab_size,
    max_len=max(
      config.data.max_len, config.data.prompt_len + config.data.response_len
    ),
    scan_unroll=config.model.scan_unroll,
    remat=config.model.remat,
    dtype=config.model.dtype,
    attention=config.model.attention,
  )
  return model_lib.random_start(
    model, config.seed, tokenizer, config.base_dtype, mesh
  )


def _train_tokenizer(config: inputs.Config, kind: str, tokenizer: Path) -> None:
  """Trains one where there is none yet."""
  hosts.barrier("tokenizer looked for")
  if hosts.sees(tokenizer):
    return
  hosts.barrier("tokenizer not found")
  texts = train_tokenizer.record_texts(
    inputs.load(config.data, kind, config.seed).train
  )
  hosts.on_primary(
    "tokenizer",
    lambda: train_tokenizer.train_tokenizer(
      texts, config.data.vocab_size, tokenizer
    ),
  )


def load_tokenizer(start: Start) -> tokenization_lib.Tokenization:
  """The tokenizer of a start.

  Raises:
    ValueError: It has tokens that the model has no embedding for.
  """
  tokenization = tokenization_lib.load_tokenizer(start.tokenizer)
  if tokenization.vocab_size > start.config.vocab_size:
    raise ValueError(
      f"The tokenizer in {start.tokenizer} has token ids up to"
      f" {tokenization.vocab_size - 1}, but the embedding has"
      f" {start.config.vocab_size} rows. Tokens were added without resizing the"
      " model, or the tokenizer is another model's."
    )
  return tokenization
