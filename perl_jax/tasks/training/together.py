"""How the members of a run meet, where several of them can do as one.

A stage that trains is a generator: where the members of a run meet it yields a
request, and it is sent the result. A run of its own has nobody to meet, and its
requests are answered one by one (`alone`); `members.run` collects those of all
members, and answers them together. What a member computes between two requests
is the same in both.
"""

import dataclasses
import time
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from perl_jax import steps
from perl_jax.data.batches import widths
from perl_jax.tasks.training import timing
from perl_jax.tasks.training.compiled import Compiled

Result = TypeVar("Result")
Requests = Generator[Any, Any, Result]


@dataclasses.dataclass(frozen=True)
class Most:
  """Asks for the largest of a number that all members have.

  Attributes:
    value: The member's own.
  """

  value: int = 0

  def alone(self) -> int:
    """Its own."""
    return self.value


@dataclasses.dataclass(frozen=True)
class Finished:
  """Says that a member has made all its steps, and waits for the others.

  Attributes:
    settle: Waits until what the member has saved is on disk.
    batches: The stage's iterator of batches; see `Widest`.
  """

  settle: Callable[[], None]
  batches: Any

  def alone(self) -> None:
    """Nobody is waited for."""


@dataclasses.dataclass(frozen=True)
class Widest:
  """Asks for a batch as wide as the widest of all members.

  Attributes:
    batch: The member's batch, on the host.
    step: The step that it is for, from 1.
    batches: The stage's iterator of batches; its `at(step - 1)` is the batch of
      a step.
  """

  batch: Any
  step: int
  batches: Any

  def alone(self) -> Any:
    """The batch as it is."""
    return self.batch


@dataclasses.dataclass(frozen=True)
class Call:
  """Asks for a training step.

  Attributes:
    function: The step, of one member or of all; see `Member.step`.
    args: (state, frozen, batch, key) of the member.
    timed: Whether a step of all is waited for, to know what it has taken.
  """

  function: Compiled
  args: tuple[Any, Any, Any, Any]
  timed: bool = False

  def alone(self) -> tuple[steps.TrainState, dict[str, Any]]:
    """The step of one member."""
    return self.function(*self.args)


@dataclasses.dataclass
class Shared:
  """What the members of a run have in common.

  Attributes:
    size: Number of members.
    values: Numbers in which they differ, `settings.members.values_of`.
    made: What they share, by name.
    latest: What they share of some array, by name: its bytes, and what was made
      of it.
    clock: Returns seconds.
    spent: Time of the last step that was timed.
  """

  size: int
  values: steps.Values
  made: dict[Hashable, Any] = dataclasses.field(default_factory=dict)
  latest: dict[Hashable, tuple[bytes, Any]] = dataclasses.field(
    default_factory=dict
  )
  clock: timing.Clock = time.perf_counter
  spent: timing.Lap | None = None

  def call(self, calls: Mapping[int, Call]) -> dict[int, Any]:
    """Makes a step of all members at once.

    Where a member makes none, as one that is ahead of the others, the step of
    another is made in its place and dropped: it is one program whoever takes
    part, and so the same bits.

    Args:
      calls: Steps by the number of the member.
    """
    first = calls[min(calls)]
    args = [
      calls[k].args if k in calls else _copied(first) for k in range(self.size)
    ]
    states, frozen, batches, keys = zip(*args, strict=True)
    watch = timing.Stopwatch([first.function], self.clock)
    found = first.function(states, frozen[0], batches, keys, self.values)
    if first.timed:
      jax.block_until_ready(found)
      self.spent = watch.lap()
    states, metrics = found
    return {k: (states[k], metrics[k]) for k in calls}


@dataclasses.dataclass(frozen=True)
class Member:
  """A member of a run, or a run of its own.

  Attributes:
    number: Its number, from 0.
    shared: What all members of the run use; None for a run of its own.
  """

  number: int = 0
  shared: Shared | None = None

  def once(self, name: Hashable, make: Callable[[], Result]) -> Result:
    """What all members share: the first one makes it.

    Args:
      name: Key that it is kept by, with all that it depends on and in which
        members may differ.
      make: Makes it.
    """
    if self.shared is None:
      return make()
    if name not in self.shared.made:
      self.shared.made[name] = make()
    return self.shared.made[name]

  def latest(
    self, name: Hashable, of: jax.Array, make: Callable[[], Result]
  ) -> Result:
    """What members share of an array, until one of them has another.

    Args:
      name: Key that it is kept by, as that of `once`.
      of: Array, of any shape, that decides what is made: the same bytes give
        the same result.
      make: Function without arguments that makes the result.
    """
    if self.shared is None:
      return make()
    told = np.asarray(of).tobytes()
    if self.shared.latest.get(name, (None,))[0] != told:
      self.shared.latest[name] = told, make()
    return self.shared.latest[name][1]

  def meet(self, watch: timing.Stopwatch, request: Any) -> Requests[Any]:
    """Yields a request, and returns its result.

    What others compute before it is answered is not in the lap of the watch; a
    step of all counts whole in that of each, if it is timed.

    Args:
      watch: Stopwatch of what the member computes.
      request: A `Call`, a `Most`, or another request that members answer
        together.
    """
    if self.shared is None:
      return (yield request)
    with watch.stopped():
      found = yield request
    if isinstance(request, Call) and request.timed:
      watch.add(self.shared.spent)
    return found

  def step(
    self, make: Callable[[steps.Values], Callable[..., Any]], *, name: str
  ) -> Compiled:
    """The training step to ask for with `Call`.

    Args:
      make: `make(values)` returns `step(state, frozen, batch, key)`; see
        `steps.make_members_step`.
      name: Name of the function in messages.
    """
    if self.shared is None:
      return Compiled(make({}), name=name, donate=(0,))
    return self.once(
      "step",
      lambda: Compiled(
        steps.make_members_step(make),
        name=f"{name} of {self.shared.size} members",
        donate=(0,),
      ),
    )


ALONE = Member()


def alone(requests: Requests[Result]) -> Result:
  """Runs a stage that nobody else is trained with, and returns its result.

  What fails for a request is raised in the stage, where it was asked for.
  """
  try:
    request = next(requests)
    while True:
      try:
        result = request.alone()
      except BaseException as error:
        request = requests.throw(error)
      else:
        request = requests.send(result)
  except StopIteration as end:
    return end.value


def as_wide(
  asked: Mapping[int, Widest], ahead: Sequence[Widest | Finished]
) -> dict[int, Any]:
  """The batches of a step, as wide as those of all members.

  Args:
    asked: Requests of one step, by the number of the member.
    ahead: Requests of the members that have made that step before.
  """
  step = asked[min(asked)].step
  made = [other.batches.at(step - 1) for other in ahead]
  mine = [request.batch for request in asked.values()]
  return dict(zip(asked, widths.as_wide(mine, [*mine, *made]), strict=True))


def _copied(call: Call) -> tuple[Any, ...]:
  """The arguments of a step, with a state that may be donated beside it."""
  state, *others = call.args
  return jax.tree.map(jnp.copy, state), *others
