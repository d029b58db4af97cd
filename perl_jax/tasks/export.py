"""Writes what a stage trained as a directory that other tools load.

`config.format="adapter"`: a PEFT directory. Policies are CAUSAL_LM, reward
models SEQ_CLS. `"merged"`: a whole checkpoint of `transformers`, the adapter
added into the weights in float32. `"gguf"`: files for llama.cpp and Ollama.

The directory appears once it is complete; one that exists is never touched.
"""

import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import logging

from perl_jax import buckets, disk, files
from perl_jax import params as params_lib
from perl_jax.data.text import files as text_files
from perl_jax.data.text import recipe
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.interop import (
  hf_checkpoint,
  hf_export,
  hub,
  licences,
  peft,
  pretrained,
  score,
  tokenizer_out,
)
from perl_jax.interop.gguf import export as gguf_export
from perl_jax.interop.gguf import usage as gguf_usage
from perl_jax.reporting import phases
from perl_jax.tasks.evaluation import merging
from perl_jax.tasks.initial import manifest, restore, trainable
from perl_jax.tasks.initial import model as model_lib
from perl_jax.tasks.initial.model import Start
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import card, lock, reported

FORMATS = ("adapter", "merged", "gguf")
ROLES = ("policy", "reward")
COMBINATIONS = ("", "average")
_BASE = "base"  # where the base of an adapter is put if nobody else has it


def run(config: shared.Config, workdir: str | Path) -> dict[str, float]:
  """Writes the directory `workdir`; returns how much a merge changes logits."""
  check(config)
  if jax.process_count() > 1:
    raise ValueError(
      "An export is written by one process: start it without --distributed, on"
      " a host that sees config.init."
    )
  workdir = Path(workdir).absolute()
  if workdir.exists() or workdir.is_symlink():  # a link to nowhere, too
    raise ValueError(
      f"--workdir={workdir} exists. An export writes a directory of its own:"
      " name another, or remove this one."
    )
  if config.push:
    hub.check(config.push)
  options = model_lib.read_options(config, shared.make_mesh(config))
  which = reported.checkpoint_of(config.init, config.checkpoint)
  start = restore.load(config.init, which, config.role, "init", options=options)
  if config.role == "reward" and start.role.head is None:
    raise ValueError(
      f"config.init={config.init!r} has no scalar head: it is no reward model."
      " Set config.role to 'policy'."
    )
  config = with_base_id(config, start)
  start = one_model(config, start)
  head = exported_head(config, start)
  partial = workdir.with_name(f".{workdir.name}.partial")
  with disk.writing("the export", workdir):
    with lock.held(partial), files.emptied(partial, lock.LOCK_FILE):
      found, usage, nested = {}, "", has_nested_base(config, start)
      with phases.phase(f"writing {workdir}"):
        if config.format == "gguf":
          found, usage = write_gguf(config, start, partial, workdir)
        else:
          tokenization = write_tokenizer(config, start, partial)
          usage = card.usage_of(config, start, tokenization, nested)
        if config.format == "adapter":
          write_adapter(config, start, head, partial, workdir, nested)
        elif config.format == "merged":
          found = write_merged(config, start, head, partial)
        if config.format != "gguf":
          tokenizer_out.keep_class(partial, tokenization.tokenizer)
      text = card.text(config, start, which, found, usage, workdir.name)
      files.write_text(partial / "README.md", text)
    partial.rename(workdir)
  logging.info("export: %s is written. %s", workdir, found or "")
  if config.push:
    with phases.phase(f"pushing {workdir}"):
      place = hub.push(workdir, config.push, private=config.push_private)
    logging.info("export: pushed to %s", place)
  return found


def check(config: shared.Config) -> None:
  """Checks the fields that only an export has.

  Raises:
    ValueError: Names the field and the value.
  """
  for field, allowed in (
    ("format", FORMATS),
    ("role", ROLES),
    ("dtype", shared.DTYPES),
  ):
    if config[field] not in allowed:
      raise ValueError(
        f"config.{field}={config[field]!r}: choose one of {allowed}."
      )
  if config.gguf_model and config.format != "gguf":
    raise ValueError(
      f"config.gguf_model={config.gguf_model!r} with config.format="
      f"{config.format!r}: set config.format to 'gguf'."
    )
  if config.format == "gguf" and config.role != "policy":
    raise ValueError(
      f"config.role={config.role!r} with config.format='gguf': llama.cpp has no"
      " place for the head of a reward model. Set config.format to 'adapter' or"
      " 'merged', which PEFT and transformers load."
    )
  if not config.init:
    raise ValueError(
      "config.init is empty: give the workdir of the stage to export."
    )


def one_model(config: shared.Config, start: Start) -> Start:
  """The start itself, or the average of its ensemble if that is asked for.

  Raises:
    ValueError: It is an ensemble and nothing was asked for, or the reverse.
  """
  if config.combine not in COMBINATIONS:
    raise ValueError(
      f"config.combine={config.combine!r}: choose one of {COMBINATIONS}."
    )
  if (start.role.members > 1) != (config.combine == "average"):
    raise ValueError(
      f"config.init={config.init!r} holds {start.role.members} reward model(s),"
      f" and config.combine={config.combine!r}. An ensemble is written as the"
      " average of its weights, a single model of higher rank, if combine is"
      " 'average'; a single model if it is ''."
    )
  return trainable.averaged(start)


def exported_head(config, start: Start) -> params_lib.Params | None:
  """The head of a reward model, without its bias if that is asked for."""
  if config.role != "reward":
    return None
  head = dict(start.role.head[params_lib.HEAD])
  if config.drop_bias:
    bias = float(head["bias"])
    logging.info("export: scores will be lower by the head's bias, %.6g", bias)
    head["bias"] = jnp.zeros_like(head["bias"])
  found = {params_lib.HEAD: head}
  score.score_weight(found)  # what cannot be exported is said before writing
  return found


def write_tokenizer(
  config, start: Start, directory: Path
) -> tokenization_lib.Tokenization:
  """Writes the start's tokenizer as others need it, and returns it.

  It has a token to pad with, and a reward model's chat template ends where the
  model was trained to be read.
  """
  tokenization, reward = start.load_tokenizer(), config.role == "reward"
  manifest.write_tokenizer(start, directory)
  for name in ("config.json", "generation_config.json"):
    (directory / name).unlink(missing_ok=True)
  tokenizer_out.set_pad_token(
    directory, *tokenizer_out.pad_token(tokenization, reward=reward)
  )
  if reward:
    template = recipe.template_for_scores(
      tokenization.template, start.score_at == "template"
    )
    if template is not None:
      tokenizer_out.set_template(directory, template)
  return tokenization


def write_gguf(config, start, partial, workdir) -> tuple[dict[str, float], str]:
  """Files for llama.cpp; returns how they are used, too."""
  origin = gguf_export.Origin(**restore.origin(start.source))
  what = gguf_export.plan(
    start.role, origin, config.gguf_model, f"config.init={config.init!r}"
  )
  template, found = None, {}
  if what.model:
    tokenizer, _ = text_files.read(start.tokenizer, start.template)
    if isinstance(tokenizer.chat_template, str):
      template = tokenizer.chat_template
  hub_name = config.base_id or licences.hub_name(origin.path)
  usage = gguf_export.save(
    partial, start.role, origin, what, template, hub_name
  )
  if what.adapter:
    place = pretrained.place_of(origin.path)
    logging.info(
      "export: %s goes on %s. README.md has it beside the other files: ln -s %s"
      " %s",
      gguf_usage.ADAPTER,
      place,
      shlex.quote(str(place)),
      shlex.quote(f"{workdir}/"),
    )
  if what.model:
    written = partial / gguf_usage.model_file(what.model)
    options = model_lib.ReadOptions(mesh=shared.make_mesh(config))
    read = model_lib.read_base(written, options)
    found = logit_change(start, read.frozen, what.model)
  return found, usage


def has_nested_base(config, start: Start) -> bool:
  """Whether an adapter goes on a model that sees images too.

  Raises:
    ValueError: With that model nobody could load the adapter.
  """
  if config.format != "adapter" or start.source["kind"] != "huggingface":
    return False
  base = start.source["path"]
  return hf_checkpoint.takes_nested(base, reward=config.role == "reward")


def write_adapter(config, start, head, partial, workdir, nested) -> None:
  """The adapter; and the base under it, unless that is a checkpoint already."""
  if start.role.adapter is None:
    raise ValueError(
      f"config.init={config.init!r} has no adapter: it was tuned in full, or"
      " not at all. Set config.format to 'merged'."
    )
  base = start.source.get("path", "")
  if start.source["kind"] != "huggingface":
    (partial / _BASE).mkdir()
    tokenization = write_tokenizer(config, start, partial / _BASE)
    hf_export.save_model(
      partial / _BASE,
      start.config,
      params_lib.widen(start.role.frozen, config.dtype),
      stops(config, tokenization),
      dtype=config.dtype,
      shard_bytes=config.shard_bytes,
      like=start.model_files or start.tokenizer,
    )
    tokenizer_out.keep_class(partial / _BASE, tokenization.tokenizer)
    base = str(workdir / _BASE)
  peft.save_adapter(
    partial,
    start.config,
    start.role.lora,
    start.role.adapter,
    base=config.base_id or buckets.named(base),
    head=head,
    nested=nested,
  )


def with_base_id(config, start: Start) -> shared.Config:
  """The config with the name of the base, if an adapter alone is pushed.

  Others load it onto what has that name: `config.base_id`, or the name on the
  hub of a base that lies in its cache.

  Raises:
    ValueError: The base is a path of this machine; names the ways out.
  """
  with_model = config.format == "gguf" and config.gguf_model
  if not config.push or config.format == "merged" or with_model:
    return config
  base, whole = restore.origin(start.source), "--config.format=merged"
  pushed = f"config.push={config.push!r}: the base of this adapter is"
  if config.format == "gguf":
    if base["kind"] not in pretrained.KINDS or base["changed"]:
      return config  # refused for that
    if base["kind"] == pretrained.GGUF:
      whole = "--config.gguf_model=q8_0"
  elif start.source["kind"] != pretrained.HUGGING_FACE:
    raise ValueError(
      f"{pushed} on no hub, so that nobody else could load it: push the whole"
      f" model, {whole}."
    )
  name = config.base_id or licences.hub_name(base["path"])
  if not name:
    raise ValueError(
      f"{pushed} {base['path']}, where nobody else finds it. Give its name on"
      " the hub, --config.base_id=OWNER/NAME, or push the whole model,"
      f" {whole}."
    )
  config = config.copy_and_resolve_references()
  config.base_id = name
  return config


def write_merged(config, start, head, partial) -> dict[str, float]:
  """The whole model; says how much the merge and its dtype change a logit."""
  merged = params_lib.merge(
    start.role.frozen,
    start.role.adapter or {},
    start.role.lora,
    config.dtype,
  )
  hf_export.save_model(
    partial,
    start.config,
    merged,
    stops(config, start.load_tokenizer()),
    dtype=config.dtype,
    shard_bytes=config.shard_bytes,
    head=head,
    like=start.model_files or start.tokenizer,
  )
  return logit_change(start, merged, config.dtype)


def logit_change(start: Start, merged, stored: str) -> dict[str, float]:
  """`merging.largest_change` by its name in the card; `stored` is a dtype."""
  change = merging.largest_change(start.role, merged)
  logging.info(
    "export: the largest change of a logit by merging into %s is %.3g",
    stored,
    change,
  )
  return {"largest_logit_change": change}


def stops(config, tokenization: tokenization_lib.Tokenization):
  """Token ids of an export, `hf_export.Stops`."""
  pad, _ = tokenizer_out.pad_token(tokenization, reward=config.role == "reward")
  return hf_export.Stops(tokenization.stop_ids, tokenization.bos_id, pad)
