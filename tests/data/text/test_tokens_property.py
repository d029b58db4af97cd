"""Tokens of drawn tokenizers, templates and conversations.

They are those of `apply_chat_template` but for what is ours on purpose: text
that looks like a special token stays text; a response shares no token with the
prompt before it, which is always the one of sampling; and it ends with a token
that stops sampling.
"""

import random
import unicodedata

import pytest

from perl_jax.data.text.template import UnevenError
from perl_jax.data.text.tokenization import Tokenization
from tests.data.text import generated
from tests.data.text.messages import assistant, user

PARTS, DRAWS = 10, 50
HOLE = "Q7xQ7x"


class Reference:
  """What transformers makes of conversations with the drawn tokenizer."""

  def __init__(self, drawn):
    self.tokenizer = drawn.tokenizer
    self.style = drawn.style

  def render(self, messages, generate=False):
    return self.tokenizer.apply_chat_template(
      messages, tokenize=False, add_generation_prompt=generate,
      enable_thinking=False,
    )  # fmt: skip

  def ids(self, text):
    return self.tokenizer(text, add_special_tokens=False).input_ids

  def text(self, ids):
    return self.tokenizer.decode(ids, skip_special_tokens=False)

  def reserved(self, ids):
    added = self.tokenizer.added_tokens_decoder
    return [i for i in ids if i in added and added[i].special]

  def folded(self, messages):
    """The messages, with the system's in the user's if it is refused."""
    try:
      self.render([*messages[:1], user("a")])
    except Exception:
      first, second, *more = messages
      return [user(f"{first['content']}\n\n{second['content']}"), *more]
    return messages

  def joined(self, messages, text):
    """Whether responses of a text share tokens with the prompts before them.

    At its end a prompt may have more than the conversation (DeepSeek-R1).
    """
    for i, message in enumerate(messages):
      if message["role"] == "assistant":
        start = self.render(messages[:i], True)
        if i + 1 == len(messages) and not text.startswith(start):
          whole = self.render([*messages[:i], assistant(HOLE)])
          start = whole.partition(HOLE)[0]
        ids = self.ids(start)
        if text.startswith(start) and self.ids(text)[: len(ids)] != ids:
          return True
    return False

  def check(self, ours, messages, text):
    """Checks tokens against those of a text."""
    theirs = self.ids(text)
    if ours == theirs:
      return
    assert self.joined(messages, text)
    assert self.reserved(ours) == self.reserved(theirs)
    # An end of turn may take away the line break before an empty response.
    assert squeezed(self.text(ours)) == squeezed(self.text(theirs))


def squeezed(text):
  """The text without what tokenizers may change about it: white space, NFC."""
  text = unicodedata.normalize("NFC", text.replace("▁", " "))
  return "".join(text.split())


def load(drawn):
  """The drawn tokenizer as ours; None if it is refused by name."""
  try:
    return Tokenization(drawn.tokenizer, name="drawn")
  except ValueError as error:
    if "ignores add_generation_prompt" in str(error):
      assert drawn.style == "no_generation_prompt"
    else:  # Such a token is looked for with a space before it.
      assert "Set normalized to false" in str(error)
      assert drawn.facts["normalized"]
      assert drawn.facts["pipeline"] == "prepend"
    return None


def check_prompts(rng, drawn, ours, theirs):
  messages = generated.talk(rng, drawn.reserved)
  folded = theirs.folded(messages)
  prompt = ours.encode_prompt(messages)[0]
  text = theirs.render(folded, True)
  theirs.check(prompt, folded, text)
  # A response of the past follows the prompt that it was given for.
  for i, message in enumerate(folded):
    if message["role"] == "assistant" and drawn.style != "thinking":
      before = ours.encode_prompt(folded[:i])[0]
      if text.startswith(theirs.render(folded[:i], True)):
        assert prompt[: len(before)] == before
  return messages, folded, prompt


def check_responses(rng, drawn, ours, theirs):
  messages, folded, prompt = check_prompts(rng, drawn, ours, theirs)
  response = generated.content(rng, drawn.reserved)
  whole = [*folded, assistant(response)]
  text = theirs.render(whole)
  ids = ours.encode_response(messages, response)
  assert ids[-1] in ours.stop_ids and not set(ids[:-1]) & set(ours.stop_ids)
  # As a conversation that ends with it.
  closed = ours.encode_prompt(messages, closed=True)[0]
  closed += ours.encode_response(messages, response, closed=True)
  theirs.check(closed, whole, text)
  if drawn.tokenizer.unk_token_id in ids:
    return  # A character that the tokenizer cannot write.
  start = theirs.render(folded, True)
  if text.startswith(start):
    said = text[len(start) :]
    assert squeezed(said).startswith(squeezed(theirs.text(ids[:-1])))
  # The text of a response is that of its tokens.
  again = ours.encode_response(messages, ours.decode(ids))
  assert squeezed(ours.decode(again)) == squeezed(ours.decode(ids))
  assert "think>" not in ours.decode(ids)  # Nor thoughts, if it has none.
  if response.strip():
    assert squeezed(response) in squeezed(ours.decode(ids))
  try:
    dialog, mask = ours.encode_dialog((), (*messages, assistant(response)))
  except UnevenError:
    return
  assert dialog == prompt + ids
  assert mask[len(prompt) :] == [True] * len(ids)


def check_lookalikes(rng, drawn, ours, theirs):
  """No text of a message becomes a token that is reserved."""
  messages = generated.talk(rng, drawn.reserved, lookalikes=True)
  plain = [{**m, "content": "a"} for m in messages]
  try:
    prompt = ours.encode_prompt(messages)[0]
  except ValueError as error:
    assert "Remove it" in str(error)
    return
  ids = drawn.tokenizer.convert_tokens_to_ids(list(drawn.reserved))
  found, expected = (
    [i for i in each if i in ids and i != drawn.tokenizer.unk_token_id]
    for each in (prompt, ours.encode_prompt(plain)[0])
  )
  assert found == expected
  if drawn.tokenizer.unk_token_id not in prompt:
    text = theirs.render(theirs.folded(messages), True)
    assert squeezed(theirs.text(prompt)) == squeezed(text)


def check_thoughts(rng, drawn, ours, theirs):
  """Where a prompt opens thoughts, a response has them, and else is refused."""
  messages = generated.talk(rng, drawn.reserved)
  thoughts, answer = (
    generated.content(rng, drawn.reserved).strip() for _ in range(2)
  )
  response = f"{thoughts} hm\n</think>\n\n{answer}"
  if drawn.style in ("r1_first", "no_thinking"):
    # Empty thoughts are what the prompt ends with, or nothing.
    why = "thoughts" if drawn.style == "r1_first" else "something else"
    with pytest.raises(ValueError, match=why):
      ours.encode_response(messages, response)
    return
  ids = ours.encode_response(messages, response)
  assert ours.encode_response(messages, f"<think>\n{response}") == ids
  again = ours.encode_response(messages, ours.decode(ids))
  assert squeezed(theirs.text(again)) == squeezed(theirs.text(ids))
  prompt = theirs.render(theirs.folded(messages), True)
  whole = ours.encode_prompt(messages)[0] + ids[:-1]
  if drawn.tokenizer.unk_token_id not in whole:
    assert squeezed(theirs.text(whole)) == squeezed(prompt + response)


def check_plain(rng, drawn, ours, theirs):
  """Without a template a prompt is text, as the tokenizer begins it."""
  text = generated.content(rng, drawn.reserved)
  ids = drawn.tokenizer(text).input_ids
  if drawn.facts["puts"] == "bos eos":
    ids = ids[:-1]
  assert ours.encode_prompt([user(text)])[0] == ids
  assert ours.beginning == tuple(ids[: len(ids) - len(theirs.ids(text))])
  response = ours.encode_response((), generated.content(rng, drawn.reserved))
  again = ours.encode_response((), ours.decode(response))
  assert squeezed(ours.decode(again)) == squeezed(ours.decode(response))


@pytest.mark.parametrize(
  "part",
  [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, PARTS))],
)
def test_tokens_are_those_of_transformers(part):
  for seed in range(part * DRAWS, (part + 1) * DRAWS):
    rng = random.Random(seed)
    drawn = generated.draw(rng)
    ours, theirs = load(drawn), Reference(drawn)
    if ours is None:
      continue
    checks = [check_responses, check_lookalikes]
    if drawn.style in generated.REASONING:
      checks.append(check_thoughts)
    for check in checks if drawn.style != "none" else (check_plain,):
      try:
        check(rng, drawn, ours, theirs)
      except Exception as error:
        error.add_note(f"seed {seed}: {drawn.facts}")
        raise
