"""Learning-rate schedules and the optimiser chain, made of Optax parts."""

import optax

from perl_jax import names

SCHEDULES = ("constant", "linear", "cosine")
OPTIMIZERS = ("adamw", "adafactor", "sgd")


def make_schedule(
  *,
  name: str,
  learning_rate: float,
  warmup_steps: int,
  total_steps: int,
  zero_steps: int = 0,
) -> optax.Schedule:
  """Makes a schedule: linear warm-up, then constant or a decay to 0.

  rate(t) = learning_rate (t + 1) / (warmup_steps + 1)  while t < warmup_steps

  so that the very first step already moves the parameters.

  Args:
    name: One of `SCHEDULES`: the shape after the warm-up. "linear" and "cosine"
      reach 0 at `total_steps`.
    learning_rate: Largest rate.
    warmup_steps: Steps of the warm-up; 0 is none.
    total_steps: Steps of the whole schedule.
    zero_steps: Number of first steps at a rate of 0; warm-up and decay then
      take the steps that are left.

  Returns:
    A function of the step, from 0, to the learning rate.

  Raises:
    ValueError: `name` is unknown.
  """
  _require("optimizer.schedule", name, SCHEDULES)
  if zero_steps:
    after = make_schedule(
      name=name,
      learning_rate=learning_rate,
      warmup_steps=warmup_steps,
      total_steps=total_steps - zero_steps,
    )
    still = optax.constant_schedule(0.0)
    return optax.join_schedules([still, after], [zero_steps])
  decay_steps = max(total_steps - warmup_steps, 1)
  after = {
    "constant": optax.constant_schedule(learning_rate),
    "linear": optax.linear_schedule(learning_rate, 0.0, decay_steps),
    "cosine": optax.cosine_decay_schedule(learning_rate, decay_steps),
  }[name]
  if not warmup_steps:
    return after
  first = learning_rate / (warmup_steps + 1)
  warmup = optax.linear_schedule(first, learning_rate, warmup_steps)
  return optax.join_schedules([warmup, after], [warmup_steps])


def make_optimizer(
  *,
  name: str,
  schedule: optax.Schedule,
  b1: float,
  b2: float,
  weight_decay: float,
  clip_norm: float,
) -> optax.GradientTransformation:
  """Makes the Optax chain of global-norm clipping and an optimiser.

  Args:
    name: One of `OPTIMIZERS`.
    schedule: From `make_schedule`.
    b1: Decay of the first moment in "adamw"; momentum of "sgd", where 0 is off.
    b2: Decay of the second moment in "adamw".
    weight_decay: Decoupled weight decay of "adamw"; the others take none.
    clip_norm: Largest global norm of the gradient; 0 does not clip.

  Raises:
    ValueError: `name` is unknown, or takes no weight decay and is given one.
  """
  _require("optimizer.name", name, OPTIMIZERS)
  if weight_decay and name != "adamw":
    raise ValueError(
      f"optimizer.weight_decay={weight_decay} with optimizer.name={name!r},"
      " which takes none: set it to 0, or optimizer.name to 'adamw'."
    )
  if name == "adamw":
    update = optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay)
  elif name == "adafactor":
    update = optax.adafactor(
      schedule, multiply_by_parameter_scale=False, clipping_threshold=None
    )
  else:
    update = optax.sgd(schedule, momentum=b1 or None)
  if not clip_norm:
    return update
  return optax.chain(optax.clip_by_global_norm(clip_norm), update)


def _require(field: str, value: str, allowed: tuple[str, ...]) -> None:
  if value not in allowed:
    hint = names.did_you_mean(value, allowed)
    raise ValueError(f"{field}={value!r}: choose one of {allowed}.{hint}")
