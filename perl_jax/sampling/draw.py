"""How responses are sampled: the spec, the samples, and one token."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax import roles, sharding
from perl_jax.models import attention, kv_cache
from perl_jax.objectives import language_model
from perl_jax.sampling import noise

LAYOUTS = ("auto", "train", "decode")


@dataclasses.dataclass(frozen=True)
class SamplingSpec:
  """How responses are sampled.

  Attributes:
    response_len: `T`, the largest number of tokens of a response.
    stop_ids: Tokens that end a response.
    pad_id: Token that fills a response after its end; it is never read.
    temperature: Divides the logits; above 0.
    top_k: Keeps the k most likely tokens; 0 keeps all.
    top_p: Keeps the smallest set of most likely tokens whose probability
      reaches p; 1 keeps all.
    greedy: Takes the most likely token instead of sampling.
    group: `G`, number of samples of each prompt, which is prefilled once.
    slots: Number of samples that are decoded at a time by continuous batching,
      a multiple of `group`; 0 decodes all samples of the call at once.
    refill: Number of slots that have to be free before waiting samples are
      prefilled into them, a multiple of `group`; 0 is a quarter of the slots.
    merge: Whether to decode with kernels W + scale A B, which are computed in
      float32 once a call. A step is cheaper, and rounds differently.
    layout: Sharding of the parameters while they decode; see `sharding`. With
      "train" each step gathers what is split over "fsdp". With "decode" the
      parameters are resharded into a second copy once a call, and prompts are
      prefilled with the first. "auto" is "decode" where "fsdp" is above 1.
    split: Whether decoding reads the layers from arrays of their own, made once
      a call; see `kv_cache.split_layers`. It takes a second copy of them, and
      more to compile. None does so on a CPU, whose products would copy each
      layer out of the stack at each token, unless a mesh spreads the layers.
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
  split: bool | None = None

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
    """Number of slots that are refilled at a time."""
    quarter = self.slots // 4 // self.group * self.group
    return self.refill or max(self.group, quarter)


class Samples(NamedTuple):
  """Responses to a batch of prompts; sample g of prompt b is row b G + g.

  Attributes:
    tokens: Responses, `[B * G, T]`, int32; `pad_id` after the end.
    mask: True up to and including the stop token, `[B * G, T]`, bool.
    stopped: Whether the response ends with a stop token, `[B * G]`, bool.
    logprobs: Log-probability in nats of each token under the distribution that
      it was sampled from, after temperature, top-k and top-p, `[B * G, T]`,
      float32; 0 where masked. With greedy decoding it is at the temperature (1
      if that is 0), without top-k and top-p.
    steps: Number of decoding steps of the batch, int32 scalar.
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

  Returns:
    Logits of the same shape; what is kept is not rescaled.

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
  """A model to decode with: its forward pass, and sampling of a token.

  Attributes:
    backbone: Model and adapter shape.
    spec: How to sample.
    body: Parameters without a scalar head.
    layout: Sharding that the parameters are in.
    split: Whether `body` has its layers split, as the cache then has to be.
  """

  backbone: roles.Backbone
  spec: SamplingSpec
  body: params_lib.Params
  layout: sharding.Layout = sharding.TRAIN
  split: bool = False

  def to_decode(self) -> "Policy":
    """The same policy, its parameters resharded as `spec.layout` says."""
    wanted = self.spec.layout
    if wanted == "auto":
      wanted = "decode" if sharding.shards(("fsdp",)) > 1 else "train"
    if wanted == "train":
      return self
    layout = sharding.DECODE
    return self._replace(
      body=sharding.reshard(self.body, layout), layout=layout
    )

  def with_layers_split(self) -> "Policy":
    """The same policy with its layers split, if `spec.split` says so."""
    split = self.spec.split
    if split is None:
      alone = jax.sharding.get_abstract_mesh().size <= 1
      split = alone and attention.platform()[0] == "cpu"
    if not split:
      return self
    body = kv_cache.split_layers(self.backbone.config, self.body)
    return self._replace(body=body, split=True)

  def cache(self, rows: int, columns: int) -> kv_cache.Cache:
    """An empty cache to run this policy with."""
    cache = kv_cache.init_cache(self.backbone.config, rows, columns)
    return cache.split() if self.split else cache

  def prefill(
    self, prompts: roles.Sequence
  ) -> tuple[jax.Array, kv_cache.Cache]:
    """Runs the model on padded prompts `[B, P]`.

    Returns:
      Hidden states `[B, D]` of the last token of each row, and a cache of P
      columns with all tokens in it.
    """
    cache = self.cache(*prompts.tokens.shape)
    return self.forward(prompts, cache, contiguous=True)

  def forward(
    self,
    sequence: roles.Sequence,
    cache: kv_cache.Cache,
    last: int = 1,
    contiguous: bool = False,
  ) -> tuple[jax.Array, kv_cache.Cache]:
    """Runs the model on tokens that follow those in the cache.

    `contiguous` is the promise that `Transformer.__call__` explains.

    Returns:
      Hidden states `[B * last, D]` of the last `last` tokens of each row, and
      the cache with all tokens in it.
    """
    hidden, cache = self.backbone.module(self.body).apply(
      {"params": self.body},
      *sequence,
      cache=cache,
      contiguous=contiguous,
      layout=self.layout,
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
    """Samples a token for each row of logits.

    Args:
      logits: `[B, V]`, float32.
      keys: Random key of each sample, `[B]`.
      steps: Number of tokens that each sample has already, `[B]`, int32.

    Returns:
      Tokens `[B]`, int32, and their log-probabilities `[B]`, float32; see
      `Samples.logprobs`.
    """
    spec = self.spec
    if spec.greedy:
      tokens = noise.argmax(logits)
      scaled = logits / (spec.temperature if spec.temperature > 0 else 1.0)
    else:
      scaled = logits / spec.temperature
      scaled = filter_logits(scaled, spec.top_k, spec.top_p)
      keys = jax.vmap(jax.random.fold_in)(keys, steps)
      # Noise is made where its logits are.
      keys = sharding.constrain(keys, self.layout.rows)
      tokens = noise.draw(keys, scaled)
    tokens = sharding.constrain(tokens, self.layout.rows)
    chosen = jnp.take_along_axis(scaled, tokens[:, None], axis=1)[:, 0]
    return tokens, chosen - jax.nn.logsumexp(scaled, axis=-1)

  def stops(self, tokens: jax.Array) -> jax.Array:
    """Whether each token ends a response, `[B]`, bool."""
    return jnp.isin(tokens, jnp.asarray(self.spec.stop_ids, jnp.int32))


def no_samples(spec: SamplingSpec, rows: int) -> Samples:
  """`Samples` of `rows` responses without a token."""
  shape = (rows, spec.response_len)
  return Samples(
    tokens=jnp.full(shape, spec.pad_id, jnp.int32),
    mask=jnp.zeros(shape, bool),
    stopped=jnp.zeros((rows,), bool),
    logprobs=jnp.zeros(shape, jnp.float32),
    steps=jnp.zeros((), jnp.int32),
  )
