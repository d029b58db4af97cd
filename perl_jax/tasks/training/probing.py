"""Where the head of a new reward model begins: fitted to the frozen model.

See `perl_jax.linear_probe`. The rows are training rows; those that are held out
are not looked at.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from perl_jax import hosts, linear_probe, roles, sharding
from perl_jax import params as params_lib
from perl_jax.reporting import phases
from perl_jax.tasks.settings import reward as reward_settings
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import batching, inputs, loop, together, watch
from perl_jax.tasks.training.compiled import Compiled


class Probing(NamedTuple):
  """What the head of a run is fitted with.

  Attributes:
    role: The reward model before its first step, on the mesh.
    data: Its rows.
    mesh: Mesh of the run.
    closing: Number of tokens that are read after a response.
    max_targets: At least the number of tokens of any response.
    member: The member of a run, or a run of its own.
  """

  role: roles.Role
  data: batching.Inputs
  mesh: jax.sharding.Mesh
  closing: int
  max_targets: int
  member: together.Member


def begun(config: shared.Config, run: loop.Run, probing: Probing) -> loop.Run:
  """The run with a fitted head; its metrics get a line for step 0.

  Args:
    config: Config of the stage.
    run: A run whose head is new.
    probing: The reward model, and the rows that its head is fitted to.
  """
  trainable, metrics = fitted(config, probing)
  if metrics:
    run.writer.write(0, metrics)
  trees = {**run.state.trainable, "reward": trainable}
  return dataclasses.replace(run, state=run.state._replace(trainable=trees))


def fitted(
  config: shared.Config, probing: Probing
) -> tuple[params_lib.Params, dict[str, float]]:
  """The role's trainable tree with a fitted head, and metrics of the fit.

  The models of an ensemble see `config.member_share` of the rows each. All
  processes have to call it; the head is that of process 0.

  Args:
    config: Config of the stage.
    probing: The model and the rows.
  """
  role, data, once = probing.role, probing.data, probing.member.once
  kind = reward_settings.loss_of(config).data
  rows = data.fingerprints[f"{inputs.TRAINING} ({kind})"]
  known = (rows, config.probe_rows, role.backbone)
  index, x = once(
    ("features", *known), lambda: _features(config.probe_rows, probing)
  )
  read = [data.train_rows[i] for i in index]
  probes = [
    once(
      ("probe", *known, tuple(chosen)),
      lambda chosen=chosen: _fit(x[chosen], [read[i] for i in chosen]),
    )
    for chosen in _rows_of_models(config, data, index)
  ]
  probes *= config.ensemble // len(probes)  # one serves all of the same rows
  if not all(probes):
    logging.warning(
      "config.probe_rows=%d: the %d rows that could be read are of one group,"
      " or have one label where others are held out, so that there is nothing"
      " to fit: the head begins at 0.",
      config.probe_rows,
      len(x),
    )
    return role.trainable, {}
  found = {
    f"probe/{key}": float(np.mean([probe[key] for probe in probes]))
    for key in ("log_loss", "accuracy")
  }
  logging.info(
    "the head begins fitted to what the frozen model says of %d rows: log loss"
    " %.4f, %.1f%% right (cross-validated), C = %s",
    len(x),
    *(found["probe/log_loss"], 100 * found["probe/accuracy"]),
    ", ".join(f"{probe['strength']:.2g}" for probe in probes),
  )
  return _with_heads(role, probes, probing.mesh), found


def _features(count: int, probing: Probing) -> tuple[list[int], np.ndarray]:
  """Indices of the rows that are read, and their features `[n, F]`."""
  role, data, mesh, closing, max_targets, _ = probing
  head = role.trainable[params_lib.HEAD]

  def features(trainable, frozen, batch):
    if role.members > 1:  # they read the same before the first step
      trainable = params_lib.member(trainable, 0)
    return roles.packed_features(
      role.backbone,
      params_lib.combine(trainable, frozen),
      batch,
      max_response=max_targets,
      closing=closing,
      likelihood="likelihood" in head,
    )

  compiled = Compiled(features, name="features of the frozen model")
  found: dict[int, np.ndarray] = {}
  for batch in data.once("reading rows with the frozen model", count):
    device = sharding.place_batch(mesh, batch)
    batch = hosts.to_host(device)
    x = hosts.to_host(compiled(role.trainable, role.frozen, device))
    for index, at in batch.places():
      sides = x[at]
      found[index] = sides[0] if len(sides) == 1 else sides[0] - sides[1]
  index = [i for i in sorted(found) if np.isfinite(found[i]).all()]
  if len(index) < len(found):
    first = min(found.keys() - set(index))
    logging.warning(
      "%d of %d rows are not finite where the head would read them, the first"
      " is %s: the head is fitted without them.",
      *(len(found) - len(index), len(found), data.train_rows[first].id),
    )
  return index, np.array([found[i] for i in index])


def _rows_of_models(
  config: shared.Config, data: batching.Inputs, index: Sequence[int]
) -> Sequence[Sequence[int]]:
  """Places in `index` of the rows that each model of an ensemble is fitted to.

  They are those that it trains on, by the numbers that pick them in batches;
  where all models see the same rows, there is one entry for all.
  """
  own = reward_settings.own_rows(config)
  if own is None or not index:
    return [range(len(index))]
  return own(len(data.train_rows))(np.array(index)).tolist()


def _fit(x: np.ndarray, rows: list[Any]) -> dict[str, Any] | None:
  """`linear_probe.Probe` as a dict, the same on all processes, or None."""
  labels = [getattr(row, "label", None) for row in rows]

  def fit():
    if not hosts.is_primary():
      return None
    return linear_probe.fit(
      x,
      None if None in labels else np.array(labels) > 0.5,
      [row.group for row in rows],
    )

  with phases.phase("fitting the head"):
    probe = watch.finished(fit)
    hosts.barrier("head fitted")
  made = None
  if probe is not None:
    made = probe._asdict() | {"weights": probe.weights.tolist()}
  content = hosts.content_from_primary(json.dumps(made).encode())
  return json.loads(content)


def _with_heads(
  role: roles.Role, probes: Sequence[Mapping[str, Any]], mesh: jax.sharding.Mesh
) -> params_lib.Params:
  heads = [_head(role, probe) for probe in probes]
  made = heads[0]
  if role.members > 1:
    made = {name: np.stack([head[name] for head in heads]) for name in made}
  return {**role.trainable, **sharding.place(mesh, {params_lib.HEAD: made})}


def _head(role: roles.Role, probe: Mapping[str, Any]) -> dict[str, np.ndarray]:
  weights, width = np.array(probe["weights"], np.float32), role.config.width
  head = {"kernel": weights[:width], "bias": np.float32(probe["bias"])}
  if len(weights) > width:
    head["likelihood"] = weights[width:]
  return head
