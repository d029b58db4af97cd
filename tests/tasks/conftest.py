"""Runs that several tests look at, made once."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def cached(compiled_once):
  """Every run of these tests keeps what it has compiled."""


@pytest.fixture(scope="session")
def sft_run(finished):
  return finished / "sft"


@pytest.fixture(scope="session")
def reward_run(finished):
  return finished / "reward"


@pytest.fixture(scope="session")
def rl_run(finished):
  return finished / "rl"
