"""One of two processes that ask a judge; run by test_asking.py.

python -m tests.hosts.asking_side PORT NUMBER
"""

import json
import sys

from perl_jax import hosts


class Judge:
  """Prefers the policy's response, says nothing of "?", and fails on "!"."""

  label, everywhere = "judge", False

  def __call__(self, pairs):
    from perl_jax.tasks.judging import pairs as pairs_lib

    assert hosts.is_primary(), "process 0 alone asks"
    found = []
    for pair in pairs:
      if pair.policy == "!":
        raise ValueError("nobody is at home")
      silent = pairs_lib.Opinion(float("nan"), "", pairs_lib.REFUSED)
      opinion = pairs_lib.Opinion(1.0, "it is better")
      found.append((opinion, silent if pair.policy == "?" else opinion))
    return found


def main(port, number):
  hosts.join(
    coordinator_address=f"127.0.0.1:{port}", num_processes=2, process_id=number
  )
  from perl_jax.tasks.judging import asking
  from tests.tasks.judging import toys

  found = asking.ask(Judge(), toys.pairs(("x", "y"), ("?", "y"), ("z", "z")))
  said = [[(str(o.verdict), o.fault) for o in both] for both in found]
  try:
    asking.ask(Judge(), toys.pairs(("x", "y"), ("!", "y")))
  except asking.CannotJudge as error:
    said.append(str(error))
  found = asking.ask(Judge(), toys.pairs(("x", "y")))  # and they go on
  said.append(found[0][0].verdict)
  print(json.dumps(said))


if __name__ == "__main__":
  main(int(sys.argv[1]), int(sys.argv[2]))
