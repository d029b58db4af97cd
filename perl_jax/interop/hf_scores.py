"""What a checkpoint of a reward model says about its scores.

`...ForSequenceClassification` with one label has a matrix `score.weight` and no
bias, and its logit at the last token is the score. A file that says more was
written by another class: `transformers` would leave that out without a word,
and the scores would not be those that the model was trained to give. So it is
refused by name.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from perl_jax import json_text
from perl_jax.interop import hf_config, hf_names

# Fields that only choose a loss, or act in training alone.
_HARMLESS = (
  "problem_type", "classifier_dropout", "classifier_dropout_prob",
  "score_dropout", "summary_first_dropout",
)  # fmt: skip
_PROBLEMS = (
  None, "regression", "single_label_classification",
  "multi_label_classification",
)  # fmt: skip
# Names of fields that could change a score, if `transformers` does not know
# them for this family.
_ABOUT_SCORES = re.compile(
  r"reward|score|value_head|v_head|regression|classifier|pool|summary_"
  r"|normali[sz]|cent(er|re)|sentence_transformers|sigmoid|activation_fn"
  r"|logit_(scale|bias)|logits_scaling"
  r"|^(mean|std|scale|shift|bias|num_classes|num_outputs)$"
)
# Values with which a field changes nothing, beside those that are not set.
_NEUTRAL = {
  r"scale|scaling|^std$|num_(classes|outputs)": (1,),
  r"pool": ("last", "last_token", "lasttoken"),
  r"value_head_prefix|head_name": ("score",),
  r"activation_fn": ("identity", "torch.nn.modules.linear.Identity"),
}
_ADVICE = (
  " transformers would leave it out, and its scores would be others than the"
  " model was trained to give. If it changes nothing, remove it from"
)


def is_reward(names: Iterable[str], architectures: Iterable[str]) -> bool:
  """Whether a checkpoint is one of `...ForSequenceClassification`.

  Args:
    names: Names of its tensors.
    architectures: As its config.json has them.
  """
  return hf_names.SCORE in names or any(
    name.endswith(hf_config.SEQ_CLS) for name in architectures
  )


def heads(names: Iterable[str]) -> list[str]:
  """Names of tensors that are neither of a language model nor `score.weight`.

  Args:
    names: Names of a checkpoint's tensors, as `hf_files.Checkpoint` has them.
  """
  known = re.compile(rf"{re.escape(hf_names.ROOT)}.*|lm_head\..*")
  return sorted(
    name
    for name in names
    if name != hf_names.SCORE
    and not known.fullmatch(name)
    and not hf_names.IGNORED.fullmatch(name)
    and not hf_names.VISION.fullmatch(name)
  )


def other_class(extra: Iterable[str], directory: Path) -> str:
  """Says that a model without a head for tokens has one that is not read.

  Args:
    extra: Names of the tensors that a language model does not have.
    directory: Directory of the checkpoint.

  Returns:
    A sentence with the way out; "" if neither a tensor nor a class says so.
  """
  fields = json_text.object_or_none(directory / "config.json") or {}
  classes = [*(fields.get("architectures") or []), *_own_code(fields)]
  known = hf_config.import_transformers()
  own = [c for c in map(str, classes) if not hasattr(known, c)]
  found = heads(extra)
  if not found and not own:
    return ""
  named = f" of the class {', '.join(own)}" if own else ""
  head = ", ".join(found[:8]) or "not in the file"
  return (
    f"This is a reward model{named}, and its head is {head}. One is read as"
    f" ...{hf_config.SEQ_CLS} alone, whose score is {hf_names.SCORE} times the"
    " last hidden state. If that is how this one scores, write it so: its"
    f" matrix [1, width] as {hf_names.SCORE}, with that class as architectures"
    " and num_labels=1. Otherwise it cannot be used; train one."
  )


def _own_code(fields: Mapping[str, Any]) -> list[str]:
  """Classes of models that come as code with a checkpoint."""
  code = fields.get("auto_map")
  code = code if isinstance(code, dict) else {}
  return [
    str(value).rsplit(".", 1)[-1]
    for name, value in code.items()
    if name.startswith("AutoModel")
  ]


def check_tensors(names: Iterable[str], directory: Path) -> None:
  """Checks that a reward model has no head but `score.weight`.

  Raises:
    ValueError: There is another one; names its tensors.
  """
  found = heads(names)
  if found:
    raise ValueError(
      f"{directory} holds {', '.join(found[:8])}. A reward model is read as"
      f" ...{hf_config.SEQ_CLS}, whose head is {hf_names.SCORE} alone:"
      f"{_ADVICE} the weights."
    )


def check_config(
  fields: Mapping[str, Any], known: Iterable[str], path: Path
) -> None:
  """Checks the fields of a reward model's config.json.

  Args:
    fields: The contents of the file.
    known: Names of fields that `transformers` knows for this family.
    path: The file, for error messages.

  Raises:
    ValueError: A field would change the scores; names it.
  """
  labels = [
    (name, len(fields[name]))
    for name in ("id2label", "label2id")
    if isinstance(fields.get(name), dict)
  ]
  if isinstance(fields.get("num_labels"), int):
    labels.append(("num_labels", fields["num_labels"]))
  for name, count in labels:
    if count != 1:
      raise ValueError(
        f"{path}: {name}={fields[name]!r} is of a classifier with {count}"
        " labels. A reward model has one (num_labels=1), whose logit is the"
        " score."
      )
  if fields.get("problem_type") not in _PROBLEMS:
    raise ValueError(
      f"{path}: problem_type={fields['problem_type']!r} is none of"
      f" {', '.join(map(repr, _PROBLEMS[1:]))}."
    )
  code = fields.get("auto_map")
  code = code if isinstance(code, dict) else {}
  custom = [name for name in code if name.startswith("AutoModel")]
  if custom:
    raise ValueError(
      f"{path}: auto_map names code of its own for {', '.join(custom)}, which"
      " is never run here. If the model is a plain"
      f" ...{hf_config.SEQ_CLS}, remove auto_map from {path.name}."
    )
  for name in sorted(set(fields) - set(known) - set(_HARMLESS)):
    value = fields[name]
    if _ABOUT_SCORES.search(name) and not _is_neutral(name, value):
      shown = json.dumps(value)
      raise ValueError(
        f"{path}: {name}={shown[:80]} is nothing that ...{hf_config.SEQ_CLS}"
        f" reads:{_ADVICE} {path.name}."
      )


def _is_neutral(name: str, value: Any) -> bool:
  """Whether a field with this value changes nothing."""
  if isinstance(value, dict):  # such as {"activation_fn": ..., "version": ...}
    return all(
      _is_neutral(key, inner)
      for key, inner in value.items()
      if _ABOUT_SCORES.search(key)
    )
  for pattern, values in _NEUTRAL.items():
    if re.search(pattern, name):
      return (
        value in (None, "")
        or value is False
        or (value in values and value is not True)
      )
  return not value
