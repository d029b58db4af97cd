"""What a shell script installs beside the pinned packages."""

import pytest

from tests.launch.test_scripts import NEEDED, TRAINING, dry, installed

ONE_HOST = {
  "tpu_vm.sh": ("--type=v5litepod-8",),
  "gke.sh": ("--tpu-type=v6e-4",),
  "gpu.sh": (),
}
BUCKET = ("--config=rl", "--workdir=gs://bucket/rl")


@pytest.mark.parametrize(
  "options, training, expected",
  [
    ((), TRAINING, []),
    (("--packages=wandb,trackio>=0.43",), TRAINING,
     ["wandb", "trackio>=0.43"]),
    ((), BUCKET, ["gcsfs"]),
    (("--packages=wandb",), (*BUCKET, "--config.base=s3://b/q"),
     ["wandb", "gcsfs", "s3fs"]),
  ],
)  # fmt: skip
@pytest.mark.parametrize("script", NEEDED)
def test_more_packages(script, options, training, expected):
  """Where the workdir is in a bucket, what reads it is installed as well."""
  commands = dry(script, *ONE_HOST[script], *options, training=training)
  install = next(c for c in commands if "requirements.txt" in " ".join(c))
  words = installed(install)
  assert words[1].endswith("requirements.txt")
  assert words[2].startswith("jax[") and words[3:] == expected
