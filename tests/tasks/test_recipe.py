"""Reward models score here as they do elsewhere, by the usual recipe.

A model of every kind of template is trained, exported and scored by
`transformers` and PEFT on whole conversations; see `tests.interop.recipe_side`.
"""

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import export as export_config
from perl_jax import params as params_lib
from perl_jax import roles
from perl_jax.data.batches.prompts import PromptBatch
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.interop import tokenizer_out
from perl_jax.tasks.initial import model, trainable
from perl_jax.tasks.initial import roles as initial_roles
from perl_jax.tasks.rollouts import build
from perl_jax.tasks.settings import rl as rl_settings
from perl_jax.tasks.settings import shared
from tests.data.text.messages import assistant
from tests.marks import by_night
from tests.tasks import tiny
from tests.tasks.bases import (
  ANSWERS,
  MODELS,
  PAIRS,
  fields,
  write_base,
  write_rows,
)

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "peft"))),
    reason="needs PyTorch and PEFT",
  ),
]

TURN = ("qwen2.5", "gemma2")
# Like another one here but for the text of their templates.
BY_NIGHT = {"llama3.2", "mistral2", "smollm2"}
RUNS = [
  (by_night if n in BY_NIGHT else pytest.param)(n, "template") for n in MODELS
] + [pytest.param(n, "turn") for n in TURN]
FORMS = ("adapter", "merged")
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Root of bases, runs and exports, all of them scored by the recipe."""
  night = "PERL_JAX_NIGHTLY" in os.environ
  kept = [run.values for run in RUNS if night or not run.marks]
  root = tmp_path_factory.mktemp("recipe")
  (root / "bases").mkdir()
  (root / "exports").mkdir()
  for path, count in (("train.jsonl", 12), ("held_out.jsonl", len(PAIRS))):
    write_rows(root / path, count)
  conversations = [
    [*prompt, assistant(answer)] for prompt, two in PAIRS for answer in two
  ]
  (root / "conversations.json").write_text(json.dumps(conversations))
  for name in dict.fromkeys(name for name, _ in kept):
    write_base(root / "bases" / name, name)
  for name, score_at in kept:
    run = root / f"{name}-{score_at}"
    tiny.run(
      run, "reward", "jsonl", score_at=score_at, steps=2,
      optimizer__learning_rate=0.1, **fields(root, name),
    )  # fmt: skip
    for form in FORMS:
      wanted = {"init": str(run), "role": "reward", "format": form}
      config = tiny.override(export_config.get_config(), wanted)
      tiny.tasks.run(config, root / "exports" / f"{name}-{score_at}-{form}")
  pad_with_the_end(root / "exports" / "llama3-template-merged")
  done = subprocess.run(
    [sys.executable, "-m", "tests.interop.recipe_side", str(root)],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return root


def pad_with_the_end(directory):
  """A copy in which the end of a turn pads, as many trainers set it."""
  copy = directory.with_name(f"{directory.name}-padded")
  shutil.copytree(directory, copy)
  id_, text = tokenization_lib.load_tokenizer(copy).stop
  tokenizer_out.set_pad_token(copy, id_, text)
  path = copy / "config.json"
  settings = json.loads(path.read_text()) | {"pad_token_id": id_}
  path.write_text(json.dumps(settings))


def ours(run):
  """Scores of the held-out conversations that a run has written, `[n]`."""
  rows = tiny.lines(run, "scores.jsonl")
  return np.array([[row["chosen"], row["rejected"]] for row in rows]).ravel()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "score_at"), RUNS)
def test_an_export_scores_by_the_recipe_as_its_run(made, name, score_at, form):
  recipe = np.load(made / f"exports/{name}-{score_at}-{form}" / "recipe.npy")
  expected = ours(made / f"{name}-{score_at}")
  assert np.ptp(expected) > 0.01
  for found in recipe:  # one by one, and padded
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", TURN)
def test_the_two_ends_are_two_tokens(made, name):
  """Or nothing here would show that each is read where it should be."""
  own = tokenization_lib.load_tokenizer(made / "bases" / name)
  prompt, _ = own.encode_prompt(PAIRS[0][0])
  response = own.encode_response(PAIRS[0][0], ANSWERS[0], closed=True)
  assert response[-2:] == [own.stop_ids[0], *own.closing]
  template, turn = (
    tokenization_lib.load_tokenizer(made / f"exports/{name}-{end}-merged")
    for end in ("template", "turn")
  )
  assert template.closing == own.closing and turn.closing == ()
  for exported in (template, turn):
    assert exported.encode_prompt(PAIRS[0][0])[0] == prompt


@pytest.mark.parametrize(
  "export",
  [
    "qwen2.5-template-merged",
    "gemma2-template-adapter",
    # Its base pads with the end of a turn, and its tokenizer does not.
    "llama2-template-adapter",
    "gemma2-turn-merged",
    "r1-template-merged",
    # It is read before the end of the turn, which is padding to it.
    "llama3-template-merged-padded",
  ],
)
def test_a_reward_model_of_others_scores_here_as_by_the_recipe(
  made, tmp_path, export
):
  name = export.split("-")[0]
  given = {
    k: v
    for k, v in fields(made, name).items()
    if k.startswith(("base", "data"))
  }
  tiny.run(
    tmp_path / "run", "evaluate", "jsonl", loss="pairwise",
    reward__init=str(made / "exports" / export), **given,
  )  # fmt: skip
  (expected, _) = np.load(made / "exports" / export / "recipe.npy")
  np.testing.assert_allclose(
    ours(tmp_path / "run"), expected, atol=TOLERANCE, rtol=0
  )


def sampled(tokenization, prompt_len, response_len):
  """Prompts, and responses to each as if sampled; the last two are cut."""
  rows = [
    (tokenization.encode_prompt(p)[0], tokenization.encode_response(p, answer))
    for p, two in PAIRS
    for answer in two
  ]
  rows += [(prompt, response[:2]) for prompt, response in rows[:2]]
  tokens = np.zeros((len(rows), prompt_len), np.int32)
  responses = np.zeros((len(rows), response_len), np.int32)
  mask = np.zeros(responses.shape, bool)
  for i, (prompt, response) in enumerate(rows):
    tokens[i, prompt_len - len(prompt) :] = prompt
    responses[i, : len(response)] = response
    mask[i, : len(response)] = True
  lengths = np.array([len(prompt) for prompt, _ in rows], np.int32)
  return tokens, lengths, responses, mask


@pytest.mark.parametrize("name", ["qwen2.5", "gemma2", "llama3"])
def test_rl_scores_sampled_responses_by_the_recipe(made, name):
  """In training, in one pass with the anchor, and in evaluations."""
  config = tiny.config(
    "rl", "jsonl", reward__init=str(made / f"{name}-template"),
    estimator="rloo", samples_per_prompt=2, data__response_len=24,
    **fields(made, name),
  )  # fmt: skip
  mesh = shared.make_mesh(config)
  options = model.read_options(config, mesh)
  start = model.checkpoint_start(config.base, options)
  tokenization = start.load_tokenizer()
  reward = initial_roles.load_reward(config, start, mesh)
  reward = initial_roles.read_at(reward, config, tokenization).role
  settings = rl_settings.read(config).with_stops(tokenization)
  anchor = trainable.trainable_role(
    start, lora=shared.lora_spec(config), tuning="lora", seed=0
  )
  given = sampled(tokenization, 150, 24)
  with jax.set_mesh(mesh):
    built = build.build(settings, anchor, reward)
    alone = built.engine.rewards(reward.trainable, reward.frozen, *given)
    prompts = PromptBatch(given[0][::2], given[1][::2], None, None)
    scores = built.score(
      *built.score_args(
        {"policy": anchor.trainable},
        prompts,
        [array.reshape(-1, 2, 24) for array in (*given[2:], given[3])],
      )
    )
  (expected, _) = np.load(made / f"exports/{name}-template-merged/recipe.npy")
  for found in (np.asarray(alone), np.asarray(scores["reward"]).ravel()):
    np.testing.assert_allclose(found[:8], expected, atol=TOLERANCE, rtol=0)
    # What was cut off is scored as the template would have ended it.
    end = tokenization.stop_ids[0], *tokenization.closing
    cut = [
      [*given[0][i, -given[1][i] :], *given[2][i, :2], *end] for i in (8, 9)
    ]
    lengths = np.array(list(map(len, cut)))
    padded = np.zeros((2, lengths.max()), np.int32)
    for i, ids in enumerate(cut):
      padded[i, : len(ids)] = ids
    at_end = roles.response_scores(
      reward.backbone,
      params_lib.combine(reward.trainable, reward.frozen),
      roles.right_padded(padded, lengths),
      np.zeros(padded.shape, bool),
      max_response=1,
    )
    np.testing.assert_allclose(found[8:], at_end, atol=TOLERANCE, rtol=0)


def test_rl_and_evaluation_run_with_a_closing(made, tmp_path):
  """Groups, continuous batching, microbatches; the value starts from it."""
  given = fields(made, "qwen2.5")
  rl = functools.partial(
    tiny.run, tmp_path / "rl", "rl", "jsonl", steps=2,
    reward__init=str(made / "qwen2.5-template"), **given,
  )  # fmt: skip
  found = rl(
    value__init="reward", rollouts__slots=2, rollouts__refill=1,
    score_microbatches=2, microbatches=2,
  )  # fmt: skip
  assert found["kl_at_step_0"] == 0.0
  evaluated = tiny.run(
    tmp_path / "judged", "evaluate", "jsonl", loss="pairwise",
    policy__init=str(tmp_path / "rl"),
    reward__init=str(made / "exports/qwen2.5-template-merged"),
    **{k: v for k, v in given.items() if k != "batch_size"},
  )  # fmt: skip
  assert np.isfinite(evaluated["policy.reward"])


@pytest.fixture(scope="module")
def cards(made):
  """What the code of model cards gives, by the name of an export.

  Llama 3 has no pad token, and "bare" no chat template.
  """
  names = [f"exports/qwen2.5-turn-{form}" for form in FORMS]
  for name, form in (("llama3", "adapter"), ("bare", "merged")):
    reward, given = made / f"{name}-template", fields(made, name)
    if name == "bare":
      write_base(made / "bases" / name, name)
      tiny.run(reward, "reward", "jsonl", steps=2, **given)
    rl = made / f"{name}-rl"
    tiny.run(rl, "rl", "jsonl", steps=1, reward__init=str(reward), **given)
    for init, role in ((rl, "policy"), (reward, "reward")):
      names.append(f"{name}-{role}-{form}")
      wanted = {"init": str(init), "role": role, "format": form}
      config = tiny.override(export_config.get_config(), wanted)
      tiny.tasks.run(config, made / names[-1])
  done = subprocess.run(
    [sys.executable, "-m", "tests.interop.card_side"]
    + [str(made / name) for name in names],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return {
    name: json.loads((made / name / "card.json").read_text()) for name in names
  }


@pytest.mark.parametrize(
  "name",
  [
    "llama3-reward-adapter",
    "bare-reward-merged",
    "exports/qwen2.5-turn-adapter",
    "exports/qwen2.5-turn-merged",
  ],
)
def test_the_code_of_a_reward_models_card_runs_as_it_is_printed(cards, name):
  """On two responses at once, which changes no score."""
  found = cards[name]
  assert len(found["batch"]) == 2 and np.ptp(found["batch"]) > 1e-4
  np.testing.assert_allclose(
    found["batch"], found["alone"], atol=TOLERANCE, rtol=0
  )


@pytest.mark.parametrize(
  "name", ["llama3-policy-adapter", "bare-policy-merged"]
)
def test_the_code_of_a_policys_card_runs_as_it_is_printed(cards, name):
  """On two prompts at once, which changes no response."""
  found = cards[name]
  assert len(found["batch"]) == 2 and all(found["batch"])
  assert found["batch"] == found["alone"]


def test_thoughts_are_not_scored_as_a_conversation(made, tmp_path):
  """DeepSeek-R1's prompts open thoughts, and its conversations have none."""
  given = fields(made, "r1") | {"reward__init": str(made / "r1-template")}
  with pytest.raises(ValueError, match=r"--config.reward.score_at=turn"):
    tiny.run(tmp_path / "rl", "rl", "jsonl", **given)
  found = tiny.run(
    tmp_path / "rl", "rl", "jsonl", reward__score_at="turn", steps=1, **given
  )
  assert np.isfinite(found["reward_after"])
