"""A conversation for the tests of encoding."""

from tests.data.text.messages import user

CONTEXT = tuple(user(f"hello there, {i} mochas") for i in range(4))
LONG_REPLY = "hello " * 30
