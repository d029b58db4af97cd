"""Responses to prompts as rows of files, the best of each prompt among them.

The fields are those that rows to train on have, so that the files are read back
as they are: `prompt` and `response`; `prompt` and `completion`; `prompt`,
`chosen` and `rejected`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from perl_jax.data import records
from perl_jax.tasks.rollouts import rewards

# What to do with responses that have no stop token, when the best are chosen.
UNFINISHED = ("drop", "keep")


class Responses(NamedTuple):
  """The responses to one prompt.

  Attributes:
    record: The prompt.
    rows: What was measured of each response, from `PolicyEvaluator`.
  """

  record: records.Prompt
  rows: list[Mapping[str, Any]]

  @property
  def has_rewards(self) -> bool:
    """Whether responses have a reward."""
    return "reward" in self.rows[0]

  @property
  def best(self) -> int:
    """Place of the response with the highest reward, the first of equals."""
    return max(
      range(len(self.rows)), key=lambda i: (self.rows[i]["reward"], -i)
    )

  def ranked(self, unfinished: str) -> list[Mapping[str, Any]]:
    """Responses to learn from, the one with the highest reward first.

    Empty ones are left out, and with "drop" those without a stop token: a model
    that is trained on them learns to stop where they were cut.
    """
    fit = [
      row
      for row in self.rows
      if row["response"].strip() and (row["stopped"] or unfinished == "keep")
    ]
    return sorted(fit, key=lambda row: -row["reward"])


def require_finite(rows: Iterable[Mapping[str, Any]]) -> None:
  """Checks that rewards, if there are any, can be compared.

  Raises:
    ValueError: One is no finite number; names the prompt.
  """
  for row in rows:
    if not math.isfinite(row.get("reward", 0.0)):
      raise ValueError(
        f"{row['id']}: the reward of a response is {row['reward']}, so that"
        " none can be called the best. The weights of config.reward.init are"
        " not finite, or grow too large in its model.dtype: take another of its"
        " checkpoints, or train it anew."
      )


def grouped(
  rows: Sequence[Mapping[str, Any]], prompts: Sequence[records.Prompt]
) -> list[Responses]:
  """The responses to each prompt, in the order of the prompts.

  Args:
    rows: Records of a `PolicyEvaluator`.
    prompts: Records that the `row` of each points into.
  """
  found: dict[int, list[Mapping[str, Any]]] = {}
  for row in rows:
    found.setdefault(row["row"], []).append(row)
  return [Responses(prompts[i], group) for i, group in found.items()]


def written(found: Responses) -> Iterator[dict[str, Any]]:
  """Rows of responses.jsonl: a response each.

  `prompt` is the prompt as messages, with `tools` beside it if it has any;
  `response` the text, `index` its number among those to the prompt; `finished`
  says whether it ends with a stop token, or was cut at the most tokens;
  `length` is in tokens; `logprob` is the sum of the log-probs in nats, of the
  distribution that was sampled. With a reward there are `reward`, its parts,
  and `best`, whether it is the highest of the prompt; then the checks of the
  data set.
  """
  for number, row in enumerate(found.rows):
    made = _asked(found.record) | {
      "response": row["response"],
      "index": number,
      "finished": row["stopped"],
      "length": row["length"],
      "logprob": row["logprob"],
    }
    made |= {name: row[name] for name in rewards.part_names(row)}
    if found.has_rewards:
      made["best"] = number == found.best
    yield made | row["judgements"]


def best_row(found: Responses, unfinished: str) -> dict[str, Any] | None:
  """A row of best.jsonl, a demonstration; None if no response is fit for it."""
  ranked = found.ranked(unfinished)
  if not ranked:
    return None
  return _asked(found.record) | {
    "completion": ranked[0]["response"],
    "reward": ranked[0]["reward"],
  }


def pair_row(found: Responses, unfinished: str) -> dict[str, Any] | None:
  """A row of pairs.jsonl: the best response and the worst.

  None if there are no two of different rewards and texts.
  """
  ranked = found.ranked(unfinished)
  if not ranked:
    return None
  best, worst = ranked[0], ranked[-1]
  same = best["response"].strip() == worst["response"].strip()
  if same or best["reward"] <= worst["reward"]:
    return None
  return _asked(found.record) | {
    "chosen": best["response"],
    "rejected": worst["response"],
    "reward_chosen": best["reward"],
    "reward_rejected": worst["reward"],
  }


def sample(found: Responses) -> dict[str, Any]:
  """A row of samples.jsonl, for people to read: the first or best response."""
  row = found.rows[found.best if found.has_rewards else 0]
  made = {
    "prompt": row["prompt"],
    "reference": row["reference"],
    "response": row["response"],
  }
  if found.has_rewards:
    made["response_reward"] = row["reward"]
  return made | {f"response_{k}": v for k, v in row["judgements"].items()}


def _asked(record: records.Prompt) -> dict[str, Any]:
  """The id and the prompt of a row, in the fields of users' files."""
  beside = records.around(record.prompt[0])
  messages = [
    {k: v for k, v in message.items() if k not in beside}
    | {"content": records.said(message)}
    for message in record.prompt
  ]
  given = (record.fields.get(name) for name in ("id", "question_id"))
  own = next((name for name in given if name is not None), record.id)
  found = {"id": own, "prompt": messages}
  return found | beside
