"""What is drawn and how: the spec, the samples, and one draw of a policy."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax import roles, sharding
from perl_jax.models import transformer
from perl_jax.objectives import language_model

LAYOUTS = ("auto", "train", "decode")


@dataclasses.dataclass(frozen=True)
class SamplingSpec:
  """How responses are drawn.

  Attributes:
    response_len: `T`, the most tokens a response can have.
    stop_ids: Tokens that end a response.
    pad_id: What fills a response behind its end; never read.
    temperature: Divides the logits; above 0.
    top_k: Keeps the k most likely tokens; 0 keeps all.
    top_p: Keeps the smallest set of most likely tokens whose probability
      reaches p; 1 keeps all.
    greedy: Takes the most likely token instead of sampling.
    group: `G`, samples of each prompt; it is prefilled once for all of them.
    slots: The most samples that are decoded at once, a multiple of `group`;
      whoever waits takes the slot of who has finished. 0 is all at once.
    refill: How many slots are given away at once, a multiple of `group`, as
      whole prompts are prefilled; 0 is a quarter of the slots.
    merge: Adds the adapters to a copy of their kernels, in float32, for the
      time of the call: a step is cheaper, and rounded otherwise.
    layout: Of the parameters while they decode, on a mesh; see `sharding`. In
      "train" each token gathers what is split over "fsdp"; for "decode" they
      are laid out anew once a call, into a second copy, and prompts are still
      prefilled with the first. "auto" is "decode" where "fsdp" is above 1.
  """

  response_len: int
  stop_ids: tuple[int, ...]
  pad_id: int = 0
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  greedy: bool = False
  group: int = 1
  slots: int = 0
  refill: int = 0
  merge: bool = False
  layout: str = "auto"

  def __post_init__(self):
    if not self.greedy and not self.temperature > 0:
      raise ValueError(
        f"temperature={self.temperature} must be above 0; use greedy=True"
        " for the most likely token."
      )
    if not 0 < self.top_p <= 1 or self.top_k < 0:
      raise ValueError(
        f"top_p={self.top_p} must be in (0, 1] and top_k={self.top_k} at"
        " least 0."
      )
    if self.response_len < 1:
      raise ValueError(f"response_len={self.response_len} must be at least 1.")
    if self.group < 1:
      raise ValueError(f"group={self.group} must be at least 1.")
    if self.slots < 0 or self.slots % self.group:
      raise ValueError(
        f"slots={self.slots} must be a multiple of group={self.group}, or 0 to"
        " decode all samples at once."
      )
    if not 0 <= self.refill <= self.slots or self.refill % self.group:
      raise ValueError(
        f"refill={self.refill} must be a multiple of group={self.group} and at"
        f" most slots={self.slots}, or 0 for a quarter of them."
      )
    if self.layout not in LAYOUTS:
      raise ValueError(
        f"layout={self.layout!r}: choose one of {', '.join(LAYOUTS)}."
      )

  @property
  def refill_size(self) -> int:
    """Slots that are given away at once."""
    quarter = self.slots // 4 // self.group * self.group
    return self.refill or max(self.group, quarter)


class Samples(NamedTuple):
  """Responses to a batch of prompts; sample g of prompt b is row b G + g.

  Attributes:
    tokens: `[B * G, T]`, int32; `pad_id` behind the end.
    mask: True up to and including the stop token, `[B * G, T]`, bool.
    stopped: Whether a stop token was drawn, `[B * G]`, bool.
    logprobs: Of each token under the distribution that it was drawn from,
      temperature and cuts applied, `[B * G, T]`, float32; 0 where masked.
      Greedy tokens: at the temperature, or 1 if that is 0, without cuts.
    steps: How many times all slots decoded a token, int32 scalar.
  """

  tokens: jax.Array
  mask: jax.Array
  stopped: jax.Array
  logprobs: jax.Array | None = None
  steps: jax.Array | None = None


def filter_logits(logits: jax.Array, top_k: int, top_p: float) -> jax.Array:
  """Sets logits outside the top k and outside the nucleus p to -inf.

  Args:
    logits: `[..., V]`, float32.
    top_k: Keep this many; 0 keeps all. Ties with the k-th are kept.
    top_p: A token is kept if the tokens more likely than it have less than
      this probability together, so that the most likely one always stays.

  Reference: Holtzman et al. 2019, arXiv:1904.09751.
  """
  if top_k:
    top_k = min(top_k, logits.shape[-1])
    threshold = jax.lax.top_k(logits, top_k)[0][..., -1:]
    logits = jnp.where(logits < threshold, -jnp.inf, logits)
  if top_p < 1.0:
    ordered = -jnp.sort(-logits, axis=-1)
    probs = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    kept = jnp.where(before < top_p, ordered, jnp.inf)
    threshold = jnp.min(kept, axis=-1, keepdims=True)
    logits = jnp.where(logits < threshold, -jnp.inf, logits)
  return logits


def next_token_logits(
  backbone: roles.Backbone, params: params_lib.Params, hidden: jax.Array
) -> jax.Array:
  """Logits `[B, V]` float32 of the token that follows hidden `[B, D]`."""
  return language_model.head_logits(
    hidden,
    roles.head_kernel(backbone.config, params).astype(hidden.dtype),
    softcap=backbone.config.final_softcap,
  )


class Policy(NamedTuple):
  """What decoding does with a model: run it, and draw from it."""

  backbone: roles.Backbone
  spec: SamplingSpec
  body: params_lib.Params
  layout: sharding.Layout = sharding.TRAIN

  def to_decode(self) -> "Policy":
    """The same policy, its parameters laid out for one token a row."""
    wanted = self.spec.layout
    if wanted == "auto":
      wanted = "decode" if sharding.shards(("fsdp",)) > 1 else "train"
    if wanted == "train":
      return self
    layout = sharding.DECODE
    return self._replace(
      body=sharding.lay_out(self.body, layout), layout=layout
    )

  def forward(
    self, sequence: roles.Sequence, cache: transformer.Cache, last: int = 1
  ) -> tuple[jax.Array, transformer.Cache]:
    """Hidden states `[B * last, D]` of rows' last tokens, and the cache."""
    hidden, cache = self.backbone.module(self.body).apply(
      {"params": self.body}, *sequence, cache=cache, layout=self.layout
    )
    return hidden[:, -last:].reshape(-1, hidden.shape[-1]), cache

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Logits `[B, V]` of the tokens that follow hidden states `[B, D]`."""
    hidden = sharding.constrain(hidden, self.layout.rows)
    logits = next_token_logits(self.backbone, self.body, hidden)
    return sharding.constrain(logits, *self.layout)

  def draw(
    self, logits: jax.Array, keys: jax.Array, steps: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """A token for each row of logits, and its log-prob.

    Args:
      logits: `[B, V]`, float32.
      keys: Of the samples, `[B]`.
      steps: How many tokens each has already, `[B]`, int32.
    """
    spec = self.spec
    if spec.greedy:
      tokens = jnp.argmax(logits, axis=-1)
      scaled = logits / (spec.temperature if spec.temperature > 0 else 1.0)
    else:
      scaled = logits / spec.temperature
      scaled = filter_logits(scaled, spec.top_k, spec.top_p)
      keys = jax.vmap(jax.random.fold_in)(keys, steps)
      # Noise is made where its logits are.
      keys = sharding.constrain(keys, self.layout.rows)
      tokens = jax.vmap(jax.random.categorical)(keys, scaled)
    tokens = sharding.constrain(tokens.astype(jnp.int32), self.layout.rows)
    chosen = jnp.take_along_axis(scaled, tokens[:, None], axis=1)[:, 0]
    return tokens, chosen - jax.nn.logsumexp(scaled, axis=-1)

  def stops(self, tokens: jax.Array) -> jax.Array:
    """Which tokens end a response."""
    return jnp.isin(tokens, jnp.asarray(self.spec.stop_ids, jnp.int32))


def no_samples(spec: SamplingSpec, rows: int) -> Samples:
  """What there is before the first step."""
  shape = (rows, spec.response_len)
  return Samples(
    tokens=jnp.full(shape, spec.pad_id, jnp.int32),
    mask=jnp.zeros(shape, bool),
    stopped=jnp.zeros((rows,), bool),
    logprobs=jnp.zeros(shape, jnp.float32),
    steps=jnp.zeros((), jnp.int32),
  )
