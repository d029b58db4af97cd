"""Reward functions that the runs of these tests name."""

import os
import signal
import sys


def vowels(prompts, responses, rows):
  """Share of vowels, and what tells one row from another."""
  del prompts
  return [
    sum(letter in "aeiou" for letter in text) / (1 + len(text))
    + 0.01 * len(row["reference"] or "")
    for text, row in zip(responses, rows)
  ]


def seen_rows(prompts, responses, rows):
  """As `vowels`; writes down which process was asked about which rows."""
  path = f"{os.environ['PERL_JAX_SEEN']}.{os.getpid()}"
  with open(path, "a", encoding="ascii") as file:
    file.writelines(f"{row['id']}\n" for row in rows)
  return vowels(prompts, responses, rows)


CALLS = []


def killed_later(prompts, responses, rows):
  """As `seen_rows`; ends the second process in a call that is named."""
  CALLS.append(len(rows))
  named = os.environ.get("PERL_JAX_KILLED_AT") == str(len(CALLS))
  if named and "--process_id=1" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
  return seen_rows(prompts, responses, rows)


def fails_later(prompts, responses, rows):
  """As `fails_on_second`, in its fifth call only."""
  CALLS.append(len(rows))
  call = fails_on_second if len(CALLS) == 5 else vowels
  return call(prompts, responses, rows)


def fails_on_second(prompts, responses, rows):
  """Fails where the command line has what the environment says."""
  if os.environ["PERL_JAX_FAILS"] in sys.argv:
    raise RuntimeError("no judgement here")
  return vowels(prompts, responses, rows)
