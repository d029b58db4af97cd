"""The metrics of all runs, one row each: what a key of a metric means.

A metric has a key wherever a run writes it: `train/loss`, `validation/gold`
and `seconds/step` in metrics.jsonl, `rl.reward_before`, `reward.accuracy_low`
and `seconds.rl` in a summary. `row_of` finds the row of a key, and everything
that shows a metric takes its label, unit and format from there.

A new metric is written where it is measured and gets a row here.
"""

import dataclasses
import re

# Prefixes of metrics.jsonl, with the colour of their curves.
COLOURS = {"train": "c1", "rollout": "c1", "validation": "c2"}
# Prefixes of what differs between two equal runs; shown as a table.
CLOCKS = ("seconds", "rate")
# Prefixes of a pipeline's summary, `seconds.rl`, with the stage's own key.
_OF_STAGES = {"seconds": "seconds", "memory": "peak_bytes"}
# What a name may end in, and how that is written behind the label.
_SUFFIXES = {
  "_before": "before",
  "_after": "after",
  "_at_step_0": "at step 0",
  "_low": "lower end of the 95% interval",
  "_high": "upper end of the 95% interval",
}
_MEMBER = re.compile(r"(.+)_member_(\d+)")
_FUNCTION = re.compile(r"(reward_fn)_(\w+)")
_SUBSET = re.compile(r"(accuracy)_in_([\w-]+)")
_JUDGED = re.compile(r"(?:.*\.)?by\.(.+)\.[^.]+")


@dataclasses.dataclass(frozen=True)
class Metric:
  """What a metric means and how it is shown.

  Attributes:
    name: The name of the row; see `row_of`.
    label: What people call it, in lower case.
    unit: Unit of its values, "" for none.
    percent: Whether the values are shares in [0, 1] that are shown in percent.
    better: 1 if higher is better, -1 if lower is, 0 if neither.
    main: Whether its curve is shown at once, not folded away.
    check: Whether it is a checker's share of right responses, which is
      independent of the reward that is trained on.
    phase: Whether it is the time of a phase of each training step.
  """

  name: str
  label: str
  unit: str = ""
  percent: bool = False
  better: int = 0
  main: bool = False
  check: bool = False
  phase: bool = False


def _share(name: str, label: str, unit: str = "%", **fields) -> Metric:
  return Metric(name, label, unit, percent=True, **fields)


def _check(name: str, label: str) -> Metric:
  unit = "% of responses"
  return _share(name, label, unit, better=1, main=True, check=True)


# In the order in which they are shown; of checks, the most telling first.
METRICS = {
  row.name: row
  for row in (
    Metric("loss", "loss", better=-1, main=True),
    Metric("sft.loss", "loss", "nats per token", better=-1, main=True),
    Metric("reward.loss", "loss", "nats", better=-1, main=True),
    Metric("dpo.loss", "loss", "nats per pair", better=-1, main=True),
    _share("accuracy", "accuracy", better=1, main=True),
    _share(
      "sft.accuracy", "accuracy", "% of target tokens", better=1, main=True
    ),
    _check("gold", "gold success"),
    _check("exact_match", "exact match with the human turn"),
    _check("valid_json", "valid JSON"),
    _check("known_api", "known API name"),
    _share(
      "rl.win_rate",
      "win rate against the anchor, a tie as half",
      "% of pairs",
      better=1,
      main=True,
    ),
    Metric("auroc", "AUROC", better=1, main=True),
    Metric("reward", "reward", "score", better=1, main=True),
    Metric("kl", "KL to the anchor", "nats", main=True),
    Metric("policy_loss", "policy loss", main=True),
    Metric("value_loss", "value loss", better=-1, main=True),
    Metric("length", "response length", "tokens", main=True),
    _share(
      "stop_rate", "responses with a stop token", "% of responses", main=True
    ),
    Metric("entropy", "entropy", "nats per token", main=True),
    _share("repetition", "repeated 4-grams", main=True),
    Metric("margin", "margin of chosen over rejected", "score", main=True),
    Metric("calibration_error", "calibration error", better=-1, main=True),
    Metric("log_loss", "log loss", "nats", better=-1),
    _share("balanced_accuracy", "balanced accuracy", better=1),
    _share("base_rate", "base rate of label 1"),
    _share("win_rate", "win rate", "% of pairs", better=1, main=True),
    _share("tie_rate", "ties", "% of pairs"),
    _share("loss_rate", "loss rate", "% of pairs", better=-1),
    _share("win_rate_ties_half", "win rate, a tie as half", better=1),
    _share(
      "win_rate_length_controlled",
      "win rate at equal lengths, a tie as half",
      better=1,
    ),
    _share("consistency", "same verdict in both orders", "% of pairs"),
    _share("first_rate", "verdicts for what is shown first"),
    _share("agreement", "pairs with the same outcome", "% of pairs"),
    Metric("kappa", "Cohen's kappa"),
    Metric("judged", "pairs with an outcome"),
    Metric("refused", "refusals of the judge"),
    Metric("unparsable", "answers without a verdict"),
    Metric("cut", "answers that were cut, or pairs that are too long"),
    Metric("same_rows", "trained on the rows of the policy's reward model"),
    Metric("unpaired", "prompts without a second response"),
    Metric("characters", "response length", "characters"),
    Metric("score", "score", "logit"),
    Metric("chosen_reward", "implicit reward of chosen", "score"),
    Metric("rejected_reward", "implicit reward of rejected", "score"),
    Metric("n", "held-out rows"),
    Metric("score.n", "rows"),
    Metric("score.score", "score", "score"),
    Metric("score_std", "standard deviation of the scores", "score"),
    Metric("generate.n", "prompts"),
    Metric("responses", "responses"),
    Metric("best_reward", "reward of the best response", "score", better=1),
    Metric("best_rows", "rows of best.jsonl"),
    Metric("pair_rows", "rows of pairs.jsonl"),
    Metric("logprob", "log-prob of a response", "nats"),
    Metric("rows_dropped", "rows that were left out"),
    _share("rewardbench", "RewardBench", better=1, main=True),
    _share("rewardbench_chat", "RewardBench, chat", better=1),
    _share("rewardbench_chat_hard", "RewardBench, hard chat", better=1),
    _share("rewardbench_safety", "RewardBench, safety", better=1),
    _share("rewardbench_reasoning", "RewardBench, reasoning", better=1),
    _share("rewardbench2", "RewardBench 2", better=1, main=True),
    _share("rewardbench2_factuality", "RewardBench 2, factuality", better=1),
    _share(
      "rewardbench2_precise_if",
      "RewardBench 2, precise instructions",
      better=1,
    ),
    _share("rewardbench2_math", "RewardBench 2, mathematics", better=1),
    _share("rewardbench2_safety", "RewardBench 2, safety", better=1),
    _share("rewardbench2_focus", "RewardBench 2, focus", better=1),
    _share("rewardbench2_ties", "RewardBench 2, ties", better=1),
    _share("rm_bench", "RM-Bench", better=1, main=True),
    _share("rm_bench_easy", "RM-Bench, style for the right", better=1),
    _share("rm_bench_normal", "RM-Bench, equal styles", better=1),
    _share("rm_bench_hard", "RM-Bench, style against the right", better=1),
    _share("rm_bench_chat", "RM-Bench, chat", better=1),
    _share("rm_bench_math", "RM-Bench, mathematics", better=1),
    _share("rm_bench_code", "RM-Bench, code", better=1),
    _share("rm_bench_safety", "RM-Bench, safety", better=1),
    Metric("reward_model", "reward from the model", "score"),
    Metric("reward_fn", "reward from the function", "score"),
    Metric("reward_spread", "standard deviation over the ensemble", "score"),
    Metric("reward_std", "standard deviation of the reward", "score"),
    _share("equal_rewards", "prompts with equal rewards", "% of prompts"),
    _share("signal", "tokens with a training signal", "% of tokens"),
    Metric("objective", "reward less the weighted KL", "score", better=1),
    Metric("kl_per_token", "KL per token", "nats per token"),
    Metric("kl_k3", "KL per token, k3 estimate", "nats per token"),
    Metric("kl_loss", "KL term of the loss", "nats per token"),
    Metric("entropy_loss", "entropy term of the loss", "nats per token"),
    Metric("beta", "weight of the KL"),
    Metric(
      "sampler_difference",
      "difference of sampler and trainer log-probs",
      "nats per token",
    ),
    Metric("decode_steps", "decode steps", "steps"),
    Metric("tokens", "prompt and response tokens", "tokens"),
    Metric("ratio", "policy ratio"),
    Metric(
      "approx_kl",
      "KL of the policy that sampled to the one that is updated",
      "nats per token",
    ),
    _share("clip_fraction", "clipped policy ratios", "% of tokens"),
    _share("value_clip_fraction", "clipped values", "% of tokens"),
    Metric("advantage", "advantage", "score"),
    Metric("value", "value", "score"),
    Metric("return", "return", "score"),
    Metric("explained_variance", "explained variance", better=1),
    Metric("learning_rate", "learning rate"),
    Metric("value_learning_rate", "learning rate of the value model"),
    Metric("gradient_norm", "gradient norm", "L2 norm"),
    Metric("update_norm", "update norm", "L2 norm"),
    Metric("trainable_norm", "norm of the trainable parameters", "L2 norm"),
    Metric("skipped", "skipped updates"),
    _share("trainable_share", "trainable share of all parameters"),
    Metric("trainable_parameters", "trainable parameters"),
    Metric("value_parameters", "parameters of the value model"),
    Metric("trainable_bytes", "trainable parameters", "bytes"),
    Metric("frozen_bytes", "frozen parameters", "bytes"),
    Metric("peak_bytes", "peak memory of a device", "bytes"),
    Metric("best_step", "step of the best checkpoint"),
    Metric("checkpoint_step", "step of the checkpoint that was measured"),
    Metric("seconds", "time", "s"),
    Metric("seconds_compiling", "time of compilation", "s"),
    Metric("seconds/step", "training step", "s"),
    Metric("seconds/sample", "sampling", "s", phase=True),
    Metric("seconds/score", "scoring", "s", phase=True),
    Metric("seconds/learn", "update", "s", phase=True),
    Metric("seconds/compile", "compilation", "s"),
    Metric("seconds/evaluate", "evaluation", "s"),
    Metric("seconds/evaluate_compile", "compilation for an evaluation", "s"),
    Metric("rate/tokens", "throughput", "tokens/s", better=1),
    Metric("rate/sample", "throughput of sampling", "tokens/s", better=1),
    Metric("rate/score", "throughput of scoring", "tokens/s", better=1),
    Metric("rate/learn", "throughput of the update", "tokens/s", better=1),
    _share("rate/mfu", "model FLOPs utilisation", better=1),
  )
}
CHECKS = tuple(row.name for row in METRICS.values() if row.check)
# What is said of a policy by others than the reward that it was trained on.
INDEPENDENT = (*CHECKS, "win_rate")


def row_of(key: str, stage: str = "") -> Metric:
  """The row that a key of a metric belongs to.

  `seconds/x` and `rate/x` are rows of their own: `seconds/step`. `seconds.x`
  and `memory.x` of a pipeline's summary are the rows `seconds` and
  `peak_bytes`, x being a stage. Of any other key the name is what follows the
  last "/" or "."; if there is no row of that name, it is looked up without
  `_before`, `_after`, `_at_step_0`, `_low`, `_high` or `_member_<k>`;
  `reward_fn_<label>` is one of several functions, `accuracy_in_<subset>` that
  of a part of a benchmark. A row
  `<stage>.<name>` takes precedence where one name means different things in
  different stages.

  Args:
    key: For example `validation/gold`, `rl.gold_before`, `seconds/step`.
    stage: The stage that wrote the key, if the key does not begin with it.

  Returns:
    The row; a plain one, with a label made of the name, for an unknown key.
  """
  return _parse(key, stage)[0]


def label_of(key: str, stage: str = "", unit: bool = False) -> str:
  """The label of a key: that of its row, and what its suffix adds to it.

  `accuracy_member_0` -> `accuracy, member 0`; with `unit`, `rl.kl` ->
  `KL to the anchor (nats)`. Values in percent show their unit themselves.
  """
  row, suffix = _parse(key, stage)
  label = f"{row.label}, {suffix}" if suffix else row.label
  return f"{label} ({row.unit})" if unit and _is_shown(row) else label


def judge_of(key: str) -> str:
  """The judge of `by.<judge>.<name>`, whatever is before it; "" of others."""
  found = _JUDGED.fullmatch(key)
  return found[1] if found else ""


def rank_of(key: str) -> int:
  """Place of a key's row in the order in which metrics are shown."""
  name = row_of(key).name
  return list(METRICS).index(name) if name in METRICS else len(METRICS)


def _is_shown(row: Metric) -> bool:
  return bool(row.unit) and not row.percent


def _parse(key: str, stage: str) -> tuple[Metric, str]:
  """(row, suffix in words)."""
  first, *rest = key.split(".")
  if rest and first in _OF_STAGES:
    return METRICS[_OF_STAGES[first]], ""
  stage, suffix = first if rest else stage, ""
  name = last = re.split(r"[/.]", key)[-1]
  if key.split("/")[0] in CLOCKS:
    name = key
  elif name not in METRICS:
    stem, text = _without_suffix(name)
    name, suffix = (stem, text) if stem in METRICS else (name, "")
  row = METRICS.get(f"{stage}.{name}") or METRICS.get(name)
  return row or Metric(name, last.replace("_", " ")), suffix


def _without_suffix(name: str) -> tuple[str, str]:
  member = _MEMBER.fullmatch(name)
  if member:
    return member[1], f"member {member[2]}"
  for suffix, text in _SUFFIXES.items():
    stem = name.removesuffix(suffix)
    if stem == name:
      continue
    # An end of an interval before the training has two of them.
    known = stem in METRICS
    stem, more = (stem, "") if known else _without_suffix(stem)
    return stem, f"{more}, {text}" if more else text
  return _without_part(name)


def _without_part(name: str) -> tuple[str, str]:
  """Without the label of a function or the name of a subset."""
  function, subset = _FUNCTION.fullmatch(name), _SUBSET.fullmatch(name)
  if function and name not in METRICS:
    return function[1], _words(function[2])
  return (subset[1], subset[2]) if subset else (name, "")


def _words(label: str) -> str:
  return label.replace("_", " ")
