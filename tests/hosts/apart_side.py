"""One of two processes of which the first has the checkpoints.

python -m tests.hosts.apart_side PORT NUMBER
"""

import json
import sys

from perl_jax import hosts


def main(port, number):
  hosts.join(
    coordinator_address=f"127.0.0.1:{port}", num_processes=2, process_id=number
  )
  import jax
  import jax.numpy as jnp
  import numpy as np
  from jax.sharding import Mesh, NamedSharding, PartitionSpec

  from perl_jax import params
  from perl_jax.checkpoint import apart

  # Pieces of one or two rows, and of parts of a row.
  params._PIECE, apart._SENT_BYTES = 64, 24
  mesh = Mesh(jax.devices(), ("fsdp",))
  values = {
    "by_columns": (np.arange(70.0).reshape(7, 10) / 3, (None, "fsdp")),
    "by_rows": (np.arange(60.0).reshape(6, 10) / 3, ("fsdp",)),
    "everywhere": (np.array([-0.0, np.nan, np.inf, 1 / 3]), ()),
    "scalar": (np.array(7), ()),
  }
  dtypes = {"by_columns": jnp.bfloat16, "scalar": jnp.int32}

  def array(name):
    value, spec = values[name]
    value = value.astype(dtypes.get(name, np.float32))
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.make_array_from_callback(
      value.shape, sharding, lambda index: value[index]
    )

  def bits(tree):
    return {k: np.asarray(v).tobytes().hex() for k, v in tree.items()}

  tree = {name: array(name) for name in values}
  found = apart.gathered(tree)
  print(
    json.dumps(
      {
        "mine": None if found["scalar"] is None else bits(found),
        "expected": {
          name: np.asarray(value, dtypes.get(name, np.float32)).tobytes().hex()
          for name, (value, _) in values.items()
        },
        "again": [
          [
            a.index == b.index
            and np.asarray(a.data).tobytes() == np.asarray(b.data).tobytes()
            for a, b in zip(
              again.addressable_shards, tree[name].addressable_shards
            )
          ]
          + [again.sharding == tree[name].sharding]
          for name, again in apart.spread(found, tree).items()
        ],
      }
    )
  )


if __name__ == "__main__":
  main(int(sys.argv[1]), int(sys.argv[2]))
