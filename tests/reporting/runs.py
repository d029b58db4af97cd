"""Metrics, samples and scores of made-up runs, and a reader of the page."""

import html
import html.parser
import json
import math
import re

import numpy as np

from perl_jax import tasks
from perl_jax.reporting import page

ITEMS = ("flat white", "iced latte", "cortado", "chai <b>tea</b>", "mocha")
SIZES = ("small", "medium", "large")
MILKS = ("oat", "whole", "almond")


def order_json(generator, wrong=False):
  order = {
    "api": {
      "order": {
        "item": str(generator.choice(ITEMS)),
        "size": str(generator.choice(SIZES)),
        "milk": str(generator.choice(MILKS)),
        "extras": ["vanilla syrup"] if generator.random() < 0.5 else [],
        "quantity": "2",
      }
    }
  }
  if wrong:
    order["api"]["order"]["quantity"] = "1"
    order["api"]["order"]["milk"] = "soy"
  return json.dumps(order)


def make_sample(generator, step):
  seed = int(generator.integers(1 << 30))
  reference = order_json(np.random.default_rng(seed))
  draws = {}
  for who, chance in (("anchor", 0.4), ("policy", 0.8)):
    right = bool(generator.random() < chance)
    text = order_json(np.random.default_rng(seed), wrong=not right)
    if who == "anchor" and not right and generator.random() < 0.4:
      text = "Sure! One moment, I will put that in for you & call your name."
    draws |= {
      who: text,
      f"{who}_reward": float(generator.normal(1.5 if right else -0.8, 0.4)),
      f"{who}_gold": float(right),
    }
  item = json.loads(reference)["api"]["order"]["item"]
  prompt = [
    {"role": "user", "content": "Hi, what do you have today?"},
    {"role": "assistant", "content": "Coffee, tea and cold drinks."},
    {"role": "user", "content": f"A {item} please. Actually, make that two."},
  ]
  return {"step": step, "prompt": prompt, "reference": reference, **draws}


def sft_metrics(steps=240):
  """Lines of metrics.jsonl of supervised fine-tuning."""
  generator = np.random.default_rng(1)
  rows = []
  for step in range(0, steps, 2):
    loss = 0.12 + 2.6 * math.exp(-step / 35) + 0.04 * generator.normal()
    row = {"step": step, "train/loss": loss, "optimizer/learning_rate": 1e-3}
    row["train/accuracy"] = 1 - 0.25 * loss
    row["seconds/step"] = 0.4
    rows.append(row)
    if step % 40 == 38:
      gold = 0.44 * (1 - math.exp(-step / 80))
      rows.append(
        {
          "step": step,
          "validation/loss": loss + 0.05,
          "validation/gold": gold,
        }
      )
  return rows


def scores(pairs=True, n=700):
  """Lines of scores.jsonl, of pairs or of labelled responses."""
  generator = np.random.default_rng(2)
  if pairs:
    chosen = generator.normal(1.4, 1.2, n)
    rejected = generator.normal(-0.6, 1.2, n)
    return [
      {"chosen": c, "rejected": r, "id": f"r:{i}"}
      for i, (c, r) in enumerate(zip(chosen, rejected, strict=True))
    ]
  labels = (generator.random(n) < 0.8).astype(int)
  values = generator.normal(labels * 2.2 - 0.4, 1.3)
  return [
    {"score": s, "label": int(y), "id": f"r:{i}"}
    for i, (s, y) in enumerate(zip(values, labels, strict=True))
  ]


def reward_metrics(steps=200):
  """Lines of metrics.jsonl of a reward model."""
  generator = np.random.default_rng(3)
  rows = []
  for step in range(steps):
    fall = math.exp(-step / 50)
    loss = 0.25 + 0.45 * fall + 0.05 * generator.normal()
    accuracy = min(1.0, 0.91 - 0.4 * fall + 0.04 * generator.normal())
    rows.append({"step": step, "train/loss": loss, "train/accuracy": accuracy})
    if step % 40 == 39:
      rows.append(
        {
          "step": step,
          "validation/loss": 0.3 + 0.4 * fall,
          "validation/accuracy": 0.9 - 0.4 * fall,
          "validation/auroc": 0.95 - 0.4 * fall,
          "validation/calibration_error": 0.03 + 0.1 * fall,
        }
      )
  return rows


def rl_metrics(steps=300):
  """Lines of metrics.jsonl of reinforcement learning."""
  generator = np.random.default_rng(4)
  rows = []
  for step in range(steps):
    rise = 1 - math.exp(-step / 90)
    state = {
      "reward": -0.3 + 2.1 * rise,
      "gold": 0.41 + 0.4 * rise,
      "kl": 6.0 * rise,
      "length": 42 - 6 * rise,
      "stop_rate": min(1.0, 0.95 + 0.05 * rise),
    }
    noise = generator.normal(size=3)
    row = {"step": step} | {f"rollout/{k}": v for k, v in state.items()}
    row["rollout/reward"] += 0.25 * noise[0]
    row["rollout/gold"] = float(np.clip(state["gold"] + 0.07 * noise[1], 0, 1))
    row["rollout/kl"] += 0.5 * abs(noise[2]) * rise
    row["train/policy_loss"] = 0.02 * noise[0]
    row["train/value_loss"] = 0.8 * math.exp(-step / 60) + 0.1
    row["train/gradient_norm"] = 1 + 0.3 * noise[1]
    row |= {"seconds/sample": 0.61, "seconds/score": 0.22}
    row |= {"seconds/learn": 0.34, "seconds/step": 1.2}
    rows.append(row)
    if step % 50 == 0 or step == steps - 1:
      rows.append(
        {"step": step} | {f"validation/{k}": v for k, v in state.items()}
      )
  return rows


def rl_samples():
  """Lines of samples.jsonl of reinforcement learning, of two steps."""
  generator = np.random.default_rng(5)
  return [make_sample(generator, step) for step in (0, 299) for _ in range(24)]


SUMMARY = {
  "command": "python -m perl_jax.main --config=configs/quickstart.py "
  "--workdir=runs/quickstart",
  "sft.gold": 0.412,
  "reward.accuracy": 0.897,
  "reward.accuracy_low": 0.872,
  "reward.accuracy_high": 0.917,
  "reward.auroc": 0.951,
  "reward.calibration_error": 0.031,
  "reward.trainable_share": 0.0087,
  "rl.gold_before": 0.412,
  "rl.gold_after": 0.795,
  "rl.reward_before": -0.31,
  "rl.reward_after": 1.72,
  "rl.kl_at_step_0": 0.0,
  "rl.kl": 5.83,
  "seconds.sft": 96.2,
  "seconds.reward": 81.0,
  "seconds.rl": 361.4,
  "seconds.evaluate": 22.8,
  "seconds.total": 561.4,
  "memory.sft": 512 * 2**20,
  "memory.reward": 431 * 2**20,
  "memory.rl": 689 * 2**20,
}
CONFIG = {"task": "pipeline", "data": {"name": "coffee_bar"}, "seed": 0}
_CONFIGS = {
  "sft": {"task": "sft", "steps": 240},
  "reward": {"task": "reward"},
  "rl": {"task": "rl", "beta": 0.05, "lora": {"rank": 4}},
}
RESULTS = {name: tasks.TASKS[name].result for name in tasks.SHOWN}


def stage(name, **fields):
  """A stage of the page, with title and result from the table of tasks."""
  task = tasks.TASKS[name]
  return page.Stage(name, task.title, task.result, **fields)


def stages(**given):
  """All stages; those that are given by name take the place of empty ones."""
  return [given.get(name) or stage(name) for name in tasks.SHOWN]


def make_sft():
  return stage("sft", config=_CONFIGS["sft"], metrics=sft_metrics())


def make_reward(pairs=True):
  return stage(
    "reward",
    config=_CONFIGS["reward"],
    metrics=reward_metrics(),
    scores=scores(pairs),
  )


def make_rl():
  return stage(
    "rl", config=_CONFIGS["rl"], metrics=rl_metrics(), samples=rl_samples()
  )


def pipeline():
  """The stages of a whole pipeline."""
  return stages(sft=make_sft(), reward=make_reward(), rl=make_rl())


def render(found, summary=None):
  """The page of some stages."""
  return page.render("run", "", summary or {}, found, {}, "")


class Checker(html.parser.HTMLParser):
  """Collects what a browser would need; fails on a tag left open."""

  VOID = frozenset(("meta", "br", "link", "img"))

  def __init__(self, text):
    super().__init__(convert_charrefs=True)
    self.open, self.ids, self.tags, self.attributes = [], [], [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(tag, *pair) for pair in attrs]
    self.ids += [value for key, value in attrs if key == "id"]
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in self.VOID:
      self.open.pop()

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def headings(text):
  """Titles of the sections of a page."""
  return re.findall(r"<h2[^>]*>([^<]*)</h2>", text)


def labels(text):
  """What the page says to those who do not see its figures."""
  return [
    html.unescape(label) for label in re.findall(r'aria-label="([^"]*)"', text)
  ]


# Titles of all sections of a pipeline's page.
ALL = [
  "What was achieved",
  "Reinforcement learning: reward, success and KL",
  "Curves of each stage",
  "How good the reward model is",
  "Samples",
  "Time and memory",
  "How to run it again",
]
