"""Runs that go on compile what they did before: see tests/tasks/conftest.py."""

from tests.tasks.conftest import compiled_once  # noqa: F401
