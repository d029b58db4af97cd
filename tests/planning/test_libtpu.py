"""What libtpu is told where there is no TPU."""

from perl_jax.planning import libtpu


def test_libtpu_is_told_that_there_is_no_tpu():
  environment = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "worker-0",
  }
  libtpu.quiet(environment)
  assert environment == {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "worker-0",
  }


def test_a_tpu_is_left_to_say_what_it_is():
  environment = {}
  libtpu.quiet(environment)
  assert not environment


def test_flags_for_cpus_are_hidden():
  environment = {"XLA_FLAGS": "--xla_cpu_a=1 --xla_b=2  --xla_cpu_c"}
  libtpu.hide_cpu_flags(environment)
  assert environment == {"XLA_FLAGS": "--xla_b=2"}
  for environment in ({}, {"XLA_FLAGS": "--xla_b=2"}):
    before = dict(environment)
    libtpu.hide_cpu_flags(environment)
    assert environment == before
