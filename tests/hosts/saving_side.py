"""One of two processes that save a checkpoint; run by test_saving.py.

python -m tests.hosts.saving_side PORT NUMBER DIRECTORY
"""

import json
import sys

from absl import flags

from perl_jax import hosts


def main(port, number, directory):
  flags.FLAGS(sys.argv[:1])
  hosts.join(
    coordinator_address=f"127.0.0.1:{port}", num_processes=2, process_id=number
  )
  import jax
  import numpy as np
  from jax.experimental import multihost_utils
  from jax.sharding import Mesh, NamedSharding, PartitionSpec

  from perl_jax import checkpoint, steps

  programs, run = [], multihost_utils.sync_global_devices
  multihost_utils.sync_global_devices = lambda name: (
    programs.append(name) or run(name)
  )
  everywhere = NamedSharding(Mesh(jax.devices(), ("data",)), PartitionSpec())

  def array(value):
    return jax.make_array_from_callback((), everywhere, lambda _: value)

  state = steps.TrainState(
    {"a": array(np.float32(2.5))}, {}, array(np.int32(3))
  )
  with checkpoint.Checkpointer(directory, metric="loss", mode="min") as saver:
    assert programs  # Orbax's default, which opens the directory
    programs.clear()
    saver.save(3, state, {}, {"loss": 1.0})
    saver.wait()
    path = saver.path(3)
  print(json.dumps([programs, str(path)]))


if __name__ == "__main__":
  main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
