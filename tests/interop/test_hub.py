"""Pushes through the hub's own client, to a hub on this machine."""

import os
import shlex
import signal
import subprocess
import sys

import huggingface_hub
import pytest

from perl_jax.hosts import signals
from perl_jax.interop import hub as hub_lib
from tests.interop.hub_server import TOKEN, hub_fixture  # noqa: F401

CARD = "---\nlicense: mit\n---\n\n# A model\n"


@pytest.fixture
def export(tmp_path):
  """A directory as an export leaves it."""
  directory = tmp_path / "policy"
  (directory / "base").mkdir(parents=True)
  (directory / "README.md").write_text(CARD)
  (directory / "base" / "config.json").write_text("{}")
  (directory / "model.safetensors").write_bytes(bytes(range(256)))
  return directory


def test_all_files_arrive_in_a_private_repository(hub, export):
  hub_lib.check("policy")
  assert hub.repos == {}
  said = hub_lib.push(export, "policy", private=True)
  assert said == f"me/policy (private), {hub.url}/me/policy/commit/0123"
  assert hub.repos["me/policy"] == {
    "README.md": CARD.encode(),
    "base/config.json": b"{}",
    "model.safetensors": bytes(range(256)),
  }
  assert hub.private["me/policy"]
  commits = [path for _, path in hub.asked if "/commit/" in path]
  assert len(commits) == 1


def test_public_if_asked_for(hub, export):
  said = hub_lib.push(export, "team/policy", private=False)
  assert said.startswith("team/policy (public)")
  assert not hub.private["team/policy"]


def test_a_repository_that_there_is_stays_as_visible_as_it_is(hub, export):
  hub_lib.push(export, "policy", private=False)
  said = hub_lib.push(export, "policy", private=True)
  assert said.startswith("me/policy (public)")


def test_a_refusal_names_the_command_that_pushes(hub, export):
  hub.refuse.append("/commit/")
  with pytest.raises(ValueError) as caught:
    hub_lib.push(export, "policy", private=True)
  message = str(caught.value)
  assert f"{export} is written, and could not be pushed" in message
  assert f"hf upload policy {export} . --private" in message
  assert "this token may not write" in message
  assert "\n" not in message and TOKEN not in message


def test_the_command_of_a_refusal_pushes(hub, export):
  hub.refuse.append("/commit/")
  with pytest.raises(ValueError) as caught:
    hub_lib.push(export, "policy", private=True)
  hub.refuse.clear()
  command = str(caught.value).rpartition("To push it: hf ")[2]
  program = "from huggingface_hub.cli.hf import main; main()"
  done = subprocess.run(
    [sys.executable, "-c", program, *shlex.split(command)],
    env={**os.environ, "HF_ENDPOINT": hub.url},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert hub.repos["me/policy"]["base/config.json"] == b"{}"
  assert hub.private["me/policy"]


def test_a_push_that_is_told_to_stop_names_the_command_that_pushes(hub, export):
  answer = hub.answer

  def told(method, path, body):
    if "/commit/" in path:
      os.kill(os.getpid(), signal.SIGTERM)
    return answer(method, path, body)

  hub.answer = told
  with pytest.raises(signals.Stopped) as caught, signals.handled():
    hub_lib.push(export, "policy", private=True)
  assert f"by SIGTERM, {export} is written, and its push" in str(caught.value)
  assert caught.value.then == (
    f"To push it: hf upload policy {export} . --private"
  )


@pytest.mark.parametrize("name", ["a/b/c", "a b", "-x", "a..b", ""])
def test_a_name_that_is_none(hub, name):
  with pytest.raises(ValueError, match=r"config\.push=.* is no name"):
    hub_lib.check(name)
  assert hub.asked == []


def test_nobody_is_logged_in(hub, monkeypatch):
  monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
  with pytest.raises(ValueError, match=r"hf auth login.*HF_TOKEN"):
    hub_lib.check("policy")


def test_a_token_that_is_refused(hub):
  hub.refuse.append("whoami")
  with pytest.raises(ValueError, match=r"Nothing was exported") as caught:
    hub_lib.check("policy")
  assert TOKEN not in str(caught.value)


def test_a_token_that_may_only_read(hub):
  token = {"displayName": "mine", "role": "read"}
  hub.who["auth"] = {"type": "access_token", "accessToken": token}
  with pytest.raises(ValueError, match=r"may only read.*HF_TOKEN") as caught:
    hub_lib.check("policy")
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "auth",
  [
    {"accessToken": {"role": "write"}},
    {"accessToken": {"role": "fineGrained"}},
    {"accessToken": {"displayName": "mine"}},
    {"type": "oauth", "accessToken": None},
    None,
  ],
)
def test_tokens_that_may_write(hub, auth):
  """As far as the hub says; what it may where, it says when it is asked."""
  hub.who["auth"] = auth
  hub_lib.check("policy")


def test_no_hub(hub, monkeypatch):
  nowhere = "http://127.0.0.1:9"
  monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nowhere)
  with pytest.raises(ValueError, match="the hub does not let us in"):
    hub_lib.check("policy")
