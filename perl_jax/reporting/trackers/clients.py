"""The official clients of the trackers, behind one small interface.

Who the user is, and on which server, is the client's own business: `wandb
login`, `WANDB_API_KEY`, `MLFLOW_TRACKING_URI`, `hf auth login` and so on.
"""

import importlib.util
import os
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

# What pip installs, by the name of the tracker.
PACKAGES = {
  "wandb": "wandb",
  "mlflow": "mlflow-skinny",
  "trackio": "trackio",
}
PROJECT = "perl_jax"
# Longest that Weights & Biases may take to answer, in seconds.
_SECONDS = 30
# MLflow takes no more in one request.
_MOST_METRICS, _MOST_PARAMS, _LONGEST_PARAM = 1000, 100, 6000


class Start(NamedTuple):
  """What a tracker is told of a run when it is opened.

  Attributes:
    project: Project, or experiment of MLflow; "" for what the client's
      environment says, and else `PROJECT`.
    name: Name of the run, for people.
    group: The pipeline that it is a stage of, or "".
    task: Name of the task.
    workdir: Workdir of the run.
    known: Id of the tracker's run that goes on; None for a new one.
  """

  project: str
  name: str
  group: str
  task: str
  workdir: Path
  known: str | None


class Row(NamedTuple):
  """Scalars of one step."""

  step: int
  scalars: Mapping[str, float]


class Client(Protocol):
  """An open run of a tracker.

  Attributes:
    id: Id by which the run can be opened again.
    place: Where people look at it.
  """

  id: str
  place: str

  def configure(self, config: Mapping[str, Any]) -> None:
    """Sends the fields of a config, by dotted name."""

  def log(self, rows: Sequence[Row]) -> None:
    """Sends scalars, in the order of their steps."""

  def upload(self, paths: Sequence[Path]) -> None:
    """Sends files as artifacts of the run, by their names."""

  def close(self, state: str) -> None:
    """Ends the run, which has "finished", "stopped" or "failed"."""


class Wandb:
  """Weights & Biases; `WANDB_MODE=offline` writes into the workdir only."""

  def __init__(self, start: Start):
    import wandb

    # In a terminal it would ask for a key, and wait for an answer for ever.
    wandb.setup(settings=wandb.Settings(silent=True))
    self.id = start.known or uuid.uuid4().hex[:8]
    project = start.project or os.environ.get("WANDB_PROJECT") or PROJECT
    self._run = wandb.init(
      project=project,
      name=start.name,
      group=start.group or None,
      job_type=start.task,
      id=self.id,
      resume="allow",
      dir=str(start.workdir),
      reinit="create_new",
      settings=wandb.Settings(
        console="off",  # what is printed has samples in it
        save_code=False,
        # A command line may have passwords in it. What is sent is what the
        # documentation lists, and nothing of the machine.
        disable_git=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
        silent=True,
        init_timeout=_SECONDS,
        finish_timeout=_SECONDS,
        finish_timeout_raises=True,
      ),
    )
    offline = self._run.settings._offline
    place = str(start.workdir / "wandb") if offline else self._run.url
    self.place = place or "disabled"  # by WANDB_MODE

  def configure(self, config: Mapping[str, Any]) -> None:
    """A run that goes on gets what has changed."""
    self._run.config.update(_nested(config), allow_val_change=True)

  def log(self, rows: Sequence[Row]) -> None:
    """Rows of one step become one."""
    for row in rows:
      self._run.log(dict(row.scalars), step=row.step)

  def upload(self, paths: Sequence[Path]) -> None:
    """One artifact of the run, with all of the files."""
    import wandb

    artifact = wandb.Artifact(f"run-{self.id}", type="run")
    for path in paths:
      artifact.add_file(str(path), name=path.name)
    self._run.log_artifact(artifact)

  def close(self, state: str) -> None:
    """Waits for what has not arrived."""
    self._run.finish(exit_code=0 if state == "finished" else 1)


class Mlflow:
  """MLflow, on the server of `MLFLOW_TRACKING_URI`."""

  def __init__(self, start: Start):
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # It would try for four minutes in silence; what fails is tried again here.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    import mlflow
    from mlflow import MlflowClient, entities

    self._client, self._entities = MlflowClient(), entities
    if start.known is not None:
      run = self._client.get_run(start.known)
      self._client.update_run(start.known, status="RUNNING")
    else:
      named = os.environ.get("MLFLOW_EXPERIMENT_NAME")
      experiment = self._experiment(start.project or named or PROJECT)
      tags = {"perl_jax.task": start.task}
      if start.group:
        tags["perl_jax.pipeline"] = start.group
      run = self._client.create_run(experiment, run_name=start.name, tags=tags)
    self.id = run.info.run_id
    uri = mlflow.get_tracking_uri()
    self.place = (
      f"{uri}/#/experiments/{run.info.experiment_id}/runs/{self.id}"
      if uri.startswith("http")
      else f"{uri}, run {self.id}"
    )

  def configure(self, config: Mapping[str, Any]) -> None:
    """Parameters can not be changed: those of the first process stay."""
    known = self._client.get_run(self.id).data.params
    new = [
      self._entities.Param(name, str(value)[:_LONGEST_PARAM])
      for name, value in config.items()
      if name not in known
    ]
    for first in range(0, len(new), _MOST_PARAMS):
      part = new[first : first + _MOST_PARAMS]
      self._client.log_batch(self.id, params=part)

  def _experiment(self, name: str) -> str:
    found = self._client.get_experiment_by_name(name)
    if found is not None:
      return found.experiment_id
    return self._client.create_experiment(name)

  def log(self, rows: Sequence[Row]) -> None:
    """Each scalar is a metric at its step."""
    now = int(time.time() * 1000)
    metrics = [
      self._entities.Metric(name, float(value), now, row.step)
      for row in rows
      for name, value in row.scalars.items()
    ]
    for first in range(0, len(metrics), _MOST_METRICS):
      part = metrics[first : first + _MOST_METRICS]
      self._client.log_batch(self.id, metrics=part)

  def upload(self, paths: Sequence[Path]) -> None:
    """Each file is an artifact of the run."""
    for path in paths:
      self._client.log_artifact(self.id, str(path))

  def close(self, state: str) -> None:
    """Sets the status of the run."""
    status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
    self._client.set_terminated(self.id, status[state])


class Trackio:
  """Trackio: a local database, or the Space of `TRACKIO_SPACE_ID`."""

  def __init__(self, start: Start):
    import trackio

    # It knows a run by its name, and other workdirs may be called the same.
    self.id = start.known or f"{start.name}-{uuid.uuid4().hex[:8]}"
    project = start.project or PROJECT
    self._run = trackio.init(
      project=project,
      name=self.id,
      group=start.group or None,
      resume="allow",
      embed=False,
      auto_log_cpu=False,
      auto_log_gpu=False,
    )
    where = self._run.url or trackio.TRACKIO_DIR
    self.place = f"{where}, project {project}, run {self.id}"

  def configure(self, config: Mapping[str, Any]) -> None:
    """It is stored with the next row."""
    self._run.config.update(_nested(config))

  def log(self, rows: Sequence[Row]) -> None:
    """Each row is a row of the database."""
    for row in rows:
      self._run.log(dict(row.scalars), step=row.step)

  def upload(self, paths: Sequence[Path]) -> None:
    """Each file is an artifact of the project, named after the run."""
    for path in paths:
      name = re.sub(r"[^\w.-]", "-", f"{self.id}-{path.name}", flags=re.ASCII)
      self._run.log_artifact(path, name=name, type="run")

  def close(self, state: str) -> None:
    """Waits for what has not arrived; it knows no states."""
    del state
    self._run.finish()


CLIENTS = {"wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio}


def missing(names: Sequence[str]) -> list[str]:
  """Those of the trackers whose packages are not installed.

  A folder of that name in the current directory, such as W&B makes, is found as
  a package without a file.
  """
  found = {name: importlib.util.find_spec(name) for name in names}
  return [name for name, spec in found.items() if not (spec and spec.origin)]


def _nested(fields: Mapping[str, Any]) -> dict[str, Any]:
  """{"lora": {"rank": 4}} of {"lora.rank": 4}."""
  found: dict[str, Any] = {}
  for name, value in fields.items():
    *sections, last = name.split(".")
    inside = found
    for section in sections:
      inside = inside.setdefault(section, {})
    inside[last] = value
  return found
