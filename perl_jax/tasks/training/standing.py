"""What a run stands on, and whether it is the same when the run goes on.

A path says where something lies, not what it is: a data file may be sorted
anew, a checkpoint replaced, an earlier stage trained again. So every checkpoint
keeps SHA-256 of what the run was made from until then, and a run that goes on
is compared with them before anything is written.
"""

import ast
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from absl import logging

from perl_jax import hosts
from perl_jax import params as params_lib
from perl_jax.data import fingerprints
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.tasks.initial import manifest, saved
from perl_jax.tasks.initial.model import Start
from perl_jax.tasks.settings import reward_functions, shared
from perl_jax.tasks.training import batching, changes, inputs

ENTRY = changes.ENTRY
_BASE, _START = "base", "adapter and head that the {} starts from"
# What a run goes on with when it has changed: a function may have had to be
# mended, and then the rewards before and after are told apart by the log.
_FUNCTION = "reward function"
# What judges beside the reward; a run may go on without it.
OF_JUDGE, _JUDGE_CODE = " of the judge", "code of the judge"


@dataclasses.dataclass(frozen=True)
class Standing:
  """What a run is made from.

  Attributes:
    digests: SHA-256 in hex, by what it is of.
    places: Where that lies, by the same names; for people to read.
  """

  digests: Mapping[str, str]
  places: Mapping[str, str]

  def without(self, names: Iterable[str]) -> "Standing":
    """The same, but for what has one of these names."""
    kept = {k: v for k, v in self.digests.items() if k not in set(names)}
    return Standing(kept, self.places)


def of_run(
  config: shared.Config,
  start: Start,
  tokenization: tokenization_lib.Tokenization,
  read: Sequence[batching.Inputs],
  reward: Start | None = None,
  judge: Mapping[str, tuple[str, str]] | None = None,
) -> Standing:
  """What a stage stands on; all processes have to call it.

  The value model of RL starts from the policy or the reward model, and has no
  entry of its own; neither has an anchor, which is what the policy starts from.

  Args:
    config: Config of the stage.
    start: Model that the stage starts from.
    tokenization: The tokenizer of the start.
    read: The rows that are learned from and judged on.
    reward: The reward model that scores, if there is one.
    judge: (SHA-256, place) of what judges beside it, by "... of the judge".
  """
  role = "policy" if "policy" in config else "reward"
  entries = {
    _BASE: (start.fingerprint, _place(start)),
    _START.format(role): (
      _digest_of(start),
      config[role].init or "none",
    ),
    "tokenizer": _tokenizer(start, tokenization),
  }
  entries |= judge or {}
  return _standing(config, entries, reward, read)


def of_evaluation(
  config: shared.Config,
  starts: Mapping[str, Start],
  read: Sequence[batching.Inputs],
  more: Mapping[str, tuple[str, str]] | None = None,
) -> Standing:
  """What an evaluation stands on; all processes have to call it.

  Args:
    config: Config of the evaluation.
    starts: The models by role: "policy" with its "anchor", "reward", or all.
    read: The rows that are judged on.
    more: (SHA-256, place) of what else is read, by name.
  """
  entries = dict(more or {})
  for role, start in starts.items():
    if role == "reward":
      continue  # as that of a training
    entries |= of_model(role, start, config.policy.init)
  first = next(iter(starts.values()))
  entries["tokenizer"] = _tokenizer(first, first.load_tokenizer())
  return _standing(config, entries, starts.get("reward"), read)


def of_model(role: str, start: Start, place: str) -> dict[str, tuple[str, str]]:
  """(SHA-256, place) of a model's base and adapter; all processes call it.

  Args:
    role: What the names call it.
    start: The model.
    place: Where its adapter lies.
  """
  return {
    f"base of the {role}": (start.fingerprint, _place(start)),
    f"adapter of the {role}": (_digest_of(start), place),
  }


def _standing(
  config: shared.Config,
  entries: dict[str, tuple[str, str]],
  reward: Start | None,
  read: Sequence[batching.Inputs],
) -> Standing:
  """With what all runs have in common: what scores, and the rows."""
  if reward is not None:
    place = config.reward.init
    entries |= {
      "base of the reward model": (reward.fingerprint, _place(reward)),
      "reward model": (_digest_of(reward), place),
      "where the reward model is read": (_digest(_ending(reward)), place),
    }
  if "reward" in config and config.reward.get("fn"):
    code = list(map(_code, reward_functions.terms_of(config.reward.fn)))
    entries[_FUNCTION] = _digest(code), config.reward.fn
  for data in read:
    for name, digest in data.fingerprints.items():
      entries[name] = digest, inputs.place(config.data, name)
  digests, places = (
    {name: pair[i] for name, pair in entries.items()} for i in (0, 1)
  )
  return Standing(digests, places)


def require_same(workdir: Path, now: Standing) -> None:
  """Checks that a workdir's checkpoints stand on what the run stands on now.

  Raises:
    ValueError: Something has changed since the last checkpoint; lists what, and
      says the ways out. Nothing has been written.
  """
  found = saved.checkpoints(workdir)
  if not found:
    return
  last = found[-1]
  before = last.meta.get(ENTRY)
  if before is None:
    logging.warning(
      "The checkpoint of step %d was written by an older version, which did not"
      " note the rows, the tokenizer and the models that it was trained with:"
      " whether they are the same is not known, but for the base.",
      last.step,
    )
    before = {}
    if (workdir / manifest.MODEL_FILE).is_file():
      described = manifest.read_model(workdir, "workdir")
      before = {_BASE: described["fingerprint"]}
    now = Standing({name: now.digests[name] for name in before}, now.places)
  unknown = sorted(now.digests.keys() - before.keys())
  if unknown:
    logging.warning(
      "The checkpoint of step %d says nothing of: %s. They are taken as they"
      " are.",
      last.step,
      ", ".join(unknown),
    )
  if before.get(_FUNCTION, "") != now.digests.get(_FUNCTION, ""):
    logging.warning(
      "The code of config.reward.fn=%r has changed since step %d: rewards"
      " before and after that step may not be of one function.",
      now.places.get(_FUNCTION),
      last.step,
    )
  code = before.get(_JUDGE_CODE)
  if code is not None and code != now.digests.get(_JUDGE_CODE, code):
    logging.warning(
      "The code of config.judge.by=%r has changed since step %d: win rates"
      " before and after that step may not be of one judge.",
      now.places[_JUDGE_CODE],
      last.step,
    )
  _require_unchanged(
    f"{workdir} was trained up to step {last.step} on",
    before,
    now,
    anew="remove this one, to train on",
  )


def require_anchor(init: str, policy: Start, anchor: Start) -> None:
  """Checks that an anchor is the model that a policy was trained from.

  All processes have to call it. Models of older versions or others do not say.

  Args:
    init: Workdir of the policy.
    policy: The policy; one that is its own anchor began with nothing known.
    anchor: What is there now of what it began with.

  Raises:
    ValueError: It is another; says so, and the ways out.
  """
  known = anchor is not policy and Path(init, manifest.MODEL_FILE).is_file()
  found = saved.checkpoints(Path(init)) if known else []
  before = (found[-1].meta.get(ENTRY) or {}) if found else {}
  now = {_BASE: anchor.fingerprint, _START.format("policy"): _digest_of(anchor)}
  if any(before.get(name, digest) != digest for name, digest in now.items()):
    raise ValueError(
      f"config.policy.init={init!r} was trained from another model than"
      f" {_place(anchor)} has now, which was trained again or has gone on."
      " Restore that workdir, or train the policy again."
    )


def require_same_so_far(
  path: Path, before: Mapping[str, str], now: Standing
) -> None:
  """Checks that an evaluation goes on from what it was begun with.

  Args:
    path: The file with what it has computed, for errors.
    before: SHA-256 of what that was computed from, by name.
    now: What the evaluation stands on now.

  Raises:
    ValueError: Something has changed; lists what, and says the ways out.
  """
  if before.get(_FUNCTION, "") != now.digests.get(_FUNCTION, ""):
    logging.warning(
      "The code of config.reward.fn=%r has changed: rewards that are in %s may"
      " not be of one function with those to come. Remove the file to compute"
      " all of them again.",
      now.places.get(_FUNCTION),
      path,
    )
  _require_unchanged(
    f"{path} was computed from",
    before,
    now,
    anew="remove the file, to begin with",
  )


def _require_unchanged(
  made: str, before: Mapping[str, str], now: Standing, *, anew: str
) -> None:
  """Raises if what is compared has changed.

  Args:
    made: What was made of what was there before: "RESULT was made of".
    before: SHA-256 of that by name.
    now: What is there now.
    anew: The way out that goes on without the result: "remove it, to use".
  """
  before = {k: v for k, v in before.items() if _is_compared(k, now)}
  changed = differing(before, now)
  if changed:
    listed = "\n  ".join(changed)
    raise ValueError(
      f"{made} something else than what is there now (SHA-256 then -> now):\n"
      f"  {listed}\n"
      "Put back what was there to go on with it; or give another --workdir, or"
      f" {anew} what is there now. Nothing was changed."
    )


def _is_compared(name: str, now: Standing) -> bool:
  """Whether a run does not go on where this has changed."""
  if name in (_FUNCTION, _JUDGE_CODE):
    return False
  return not name.endswith(OF_JUDGE) or name in now.digests


def differing(before: Mapping[str, str], now: Standing) -> list[str]:
  """Lines "name: SHA-256 then -> now (where it lies)" of what has changed."""
  return [
    f"{name}: {digest[:12]} -> {now.digests.get(name, '(none)')[:12]}"
    f" ({now.places.get(name, 'no longer there')})"
    for name, digest in before.items()
    if now.digests.get(name) != digest
  ]


def _tokenizer(
  start: Start, tokenization: tokenization_lib.Tokenization
) -> tuple[str, str]:
  return fingerprints.of_tokenizer(tokenization), str(start.tokenizer)


def _place(start: Start) -> str:
  source = start.source
  if source["kind"] == "random":
    return f"random weights of seed {source['seed']}"
  return str(source["path"])


def _digest_of(start: Start) -> str:
  """SHA-256 of the adapter and the head of a start, read and not made."""
  return params_lib.fingerprint(start.role.trainable, hosts.to_host)


def _ending(reward: Start) -> list[object]:
  """Where and after which tokens the score of a response is read."""
  closing = reward.role.closing
  if closing is None:
    return [reward.score_at]
  tokens, stops = list(closing.tokens), list(closing.stop_ids)
  return [reward.score_at, tokens, stops, closing.keeps_stop]


def of_function(name: str) -> str:
  """SHA-256 of the code of a function of the user, "" if there is none."""
  return _digest(_code(reward_functions.Term(name, 1.0, "")))


def _code(term: reward_functions.Term) -> str:
  """The module or file of a reward function, without comments.

  Of a server, and of what is no file of Python, there is nothing to compare.
  """
  place = term.name.rpartition(":")[0]
  path = place
  if not place.endswith(".py"):
    path = getattr(sys.modules.get(place), "__file__", None) or ""
  if term.name.startswith(reward_functions.SERVERS) or not path.endswith(".py"):
    return ""
  return ast.dump(ast.parse(Path(path).expanduser().read_bytes()))


def _digest(value: object) -> str:
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()
