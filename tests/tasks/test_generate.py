"""Writing responses to a file of prompts: texts, the best, what is refused."""

import pytest

from perl_jax import files, tasks
from perl_jax.data.sources.jsonl import files as jsonl_files
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.interop import hf_export
from perl_jax.models import presets
from perl_jax.tasks.initial import model
from tests.data.text import families
from tests.tasks import tiny

PROMPTS = [
  {"id": 3, "prompt": "A small mocha?"},
  {"prompt": [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Two teas."},
  ]},
  {"prompt": ""},
  {"messages": [{"role": "user", "content": "A latte, please."}]},
]  # fmt: skip


def generate(tmp_path, rows=PROMPTS, name="run", **fields):
  path = tmp_path / "prompts.jsonl"
  files.write_jsonl(path, rows)
  return tiny.run(
    tmp_path / name, "generate", "jsonl", data__path=str(path), **fields
  )


def responses(tmp_path, name="run"):
  return tiny.lines(tmp_path / name, "responses.jsonl")


@pytest.mark.slow
def test_best_of_n_by_a_reward_model(tmp_path, rl_run, reward_run):
  """The scores are those that task `score` gives the same responses."""
  fields = {
    "policy__init": str(rl_run),
    "reward__init": str(reward_run),
    "samples_per_prompt": 3,
    "unfinished": "keep",
    "seed": 1,
  }
  summary = generate(tmp_path, **fields)
  rows = responses(tmp_path)
  assert [row["index"] for row in rows] == [0, 1, 2] * 3
  assert [row["id"] for row in rows[::3]] == [
    3, f"{tmp_path}/prompts.jsonl:2", f"{tmp_path}/prompts.jsonl:4"
  ]  # fmt: skip
  assert rows[3]["prompt"] == PROMPTS[1]["prompt"]
  best = tiny.lines(tmp_path / "run", "best.jsonl")
  for n, row in enumerate(best):
    group = rows[3 * n : 3 * n + 3]
    assert row["reward"] == max(each["reward"] for each in group)
    (chosen,) = [each for each in group if each["best"]]
    assert chosen["response"] == row["completion"]
  assert summary["best_reward"] == pytest.approx(
    sum(row["reward"] for row in best) / 3
  )
  assert summary["reward"] == pytest.approx(
    sum(row["reward"] for row in rows) / 9
  )
  assert summary["n"] == 3 and summary["responses"] == 9
  assert summary["rows_dropped"] == 1
  assert summary["pair_rows"] == len(
    jsonl_files.load(
      str(tmp_path / "run/pairs.jsonl"),
      "preferences",
      validation_path=str(tmp_path / "run/pairs.jsonl"),
    ).train
  )
  # Whole responses, whose text says which tokens they were.
  whole = [row for row in rows if row["finished"] and "\ufffd" not in str(row)]
  for row in whole:
    del row["best"]
  if whole:
    files.write_jsonl(tmp_path / "whole.jsonl", whole)
    tiny.run(
      tmp_path / "score",
      "score",
      "jsonl",
      reward__init=str(reward_run),
      data__path=str(tmp_path / "whole.jsonl"),
    )
    for row in tiny.lines(tmp_path / "score", "scores.jsonl"):
      assert row["score"] == pytest.approx(row["reward"], rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_a_seed_gives_the_same_responses_whatever_the_batch(tmp_path, sft_run):
  fields = {"policy__init": str(sft_run), "samples_per_prompt": 2}
  generate(tmp_path, **fields)
  generate(tmp_path, name="again", eval__batch_size=1, **fields)
  generate(tmp_path, name="other", seed=1, **fields)
  first = [row["response"] for row in responses(tmp_path)]
  assert first == [row["response"] for row in responses(tmp_path, "again")]
  assert first != [row["response"] for row in responses(tmp_path, "other")]
  assert not (tmp_path / "run/best.jsonl").exists()


@pytest.mark.slow
def test_a_finished_command_is_made_anew_only_for_other_rows(tmp_path, sft_run):
  fields = {"policy__init": str(sft_run)}
  first = generate(tmp_path, **fields)
  before = tiny.tree(tmp_path / "run")
  assert generate(tmp_path, **fields) == first
  assert tiny.tree(tmp_path / "run") == before
  (tmp_path / "run/pairs.jsonl").write_text("{}")
  assert generate(tmp_path, PROMPTS[:1], **fields)["responses"] == 1
  assert len(responses(tmp_path)) == 1
  # Nothing of the run before is left.
  assert not (tmp_path / "run/pairs.jsonl").exists()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  """Random weights of Llama's shape below a ChatML tokenizer."""
  directory = tmp_path_factory.mktemp("chatml")
  families.write(families.FAMILIES["qwen2.5"], directory)
  tokenization = tokenization_lib.load_tokenizer(directory)
  config = presets.preset(
    "llama_tiny", vocab_size=tokenization.vocab_size, max_len=256
  )
  hf_export.save_model(
    directory,
    config,
    model.random_base(config, 0, "float32"),
    hf_export.Stops(tokenization.stop_ids, None, tokenization.pad_id),
    dtype="float32",
    shard_bytes=10**9,
  )
  return directory


@pytest.mark.slow
def test_greedy_responses_are_those_of_transformers(tmp_path, checkpoint):
  """Of a model without a workdir: the text, its length and its log-prob."""
  torch = pytest.importorskip("torch", reason="compares with PyTorch")
  transformers = pytest.importorskip("transformers")
  generate(
    tmp_path,
    base=str(checkpoint),
    sampling__greedy=True,
    data__prompt_len=136,
    data__response_len=12,
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    checkpoint, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  rows = responses(tmp_path)
  assert len(rows) == 3
  for row in rows:
    ids = tokenizer.apply_chat_template(
      row["prompt"], add_generation_prompt=True, return_tensors="pt"
    )
    ids = ids if isinstance(ids, torch.Tensor) else ids["input_ids"]
    found = theirs.generate(
      ids,
      do_sample=False,
      max_new_tokens=12,
      output_logits=True,
      return_dict_in_generate=True,
    )
    new = found.sequences[0, ids.shape[1] :]
    assert row["response"] == tokenizer.decode(new, skip_special_tokens=True)
    assert row["length"] == len(new)
    stops = theirs.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    assert row["finished"] == (int(new[-1]) in stops)
    logprobs = torch.stack(found.logits)[:, 0].log_softmax(-1)
    total = logprobs[torch.arange(len(new)), new].sum()
    assert row["logprob"] == pytest.approx(float(total), abs=1e-3)


@pytest.mark.parametrize(
  "fields, rows, said",
  [
    ({"policy__init": ""}, PROMPTS, r"policy\.init and config\.base are empty"),
    ({"unfinished": "cut"}, PROMPTS, r"config\.unfinished='cut'"),
    (
      {"sampling__greedy": True, "samples_per_prompt": 2},
      PROMPTS,
      r"samples_per_prompt=2 with config\.sampling\.greedy",
    ),
    ({"data__path": ""}, PROMPTS, r"config\.data\.path is empty"),
    ({"data__validation_path": "x"}, PROMPTS, r"config\.data\.validation_path"),
    ({}, [{"prompt": ""}], r":1: field 'prompt': is empty"),
    ({}, [{"txt": "a"}], r":1: no field to learn from"),
    ({}, [{"text": "a"}], r"No prompts .*prompts\.jsonl, which has texts"),
    ({"sampling__temperature": 0.0}, PROMPTS, r"sampling\.greedy"),
  ],
)
def test_bad_input_is_refused_before_a_model_is_read(
  tmp_path, fields, rows, said
):
  """The policy is not there: whoever looked for it would say so."""
  files.write_jsonl(tmp_path / "prompts.jsonl", rows)
  given = {
    "policy__init": str(tmp_path / "no"),
    "data__path": str(tmp_path / "prompts.jsonl"),
  }
  config = tiny.config("generate", "jsonl", **given | fields)
  with pytest.raises(ValueError, match=said):
    tasks.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_is_no_model_and_what_is_too_long(tmp_path, sft_run, reward_run):
  for fields, said in (
    ({"data__response_len": 999}, "data.response_len=999"),
    ({"reward__init": str(sft_run)}, "config.reward.init"),
  ):
    with pytest.raises(ValueError) as caught:
      generate(tmp_path, policy__init=str(sft_run), **fields)
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_reward_function_and_no_model(tmp_path, sft_run):
  path = tmp_path / "mine.py"
  path.write_text(
    "def letters(prompts, responses, rows):\n"
    "  return [len(text) for text in responses]\n"
  )
  generate(
    tmp_path,
    policy__init=str(sft_run),
    reward__fn=f"{path}:letters",
    samples_per_prompt=2,
  )
  rows = responses(tmp_path)
  assert [row["reward"] for row in rows] == [len(r["response"]) for r in rows]
  for one, other in zip(rows[::2], rows[1::2], strict=True):
    assert one["best"] == (one["reward"] >= other["reward"])
    assert other["best"] != one["best"]
