"""Templates of exported reward models, rendered by transformers alone."""

import datetime

import pytest
import transformers

from perl_jax.data.text import recipe
from perl_jax.data.text import tokenization as tokenization_lib
from tests.data.text import families
from tests.data.text.chat_templates import CHATML
from tests.data.text.families import FAMILIES, REASONING, Family
from tests.data.text.messages import TALK, assistant, system

EVERY = FAMILIES | {name: REASONING[name] for name in ("r1", "smollm3")}
ODD = {
  # It writes no token after a response.
  "lines": CHATML.replace("<|im_end|>\n", "\n"),
  "ends": CHATML.removesuffix("{% endif %}") + "{% else %}<eos>{% endif %}",
  "indented": "\n  {% if true %}\n  x\n  {% endif %}\n" + CHATML + "\n\n",
}


def made(directory, name):
  """(tokenization, transformers' tokenizer) of a family or an odd template."""
  family = EVERY.get(name)
  if family is None:
    special = ("<eos>", "<|im_start|>", "<|im_end|>")
    config = {"eos_token": "<eos>"}
    family = Family(ODD[name], "bytes", special, config, None, ())
  families.write(family, directory)
  theirs = transformers.AutoTokenizer.from_pretrained(directory)
  return tokenization_lib.load_tokenizer(directory), theirs


def encoded(ours, talk, closed):
  *prompt, last = talk
  ids, _ = ours.encode_prompt(prompt, closed=closed)
  return ids + ours.encode_response(prompt, last["content"], closed)


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("name", [*EVERY, *ODD])
def test_others_get_the_tokens_that_a_score_is_read_from(
  tmp_path, monkeypatch, name, closed
):
  """Without any variable, on another day, and with any number of turns."""
  ours, theirs = made(tmp_path, name)

  class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
      return datetime.datetime(2031, 5, 6)

  monkeypatch.setattr(transformers.utils.chat_template_utils, "datetime", Clock)
  if name == "r1" and not closed:
    with pytest.raises(ValueError, match=r"'<think>.*score_at=template"):
      recipe.template_for_scores(ours.template, closed)
    return
  template = recipe.template_for_scores(ours.template, closed)
  dated = name in ("llama3.2", "smollm3")
  assert (template is None) == (
    not dated and (closed or (ours.ends_turn and not ours.closing))
  )
  template = template or theirs.chat_template
  for talk in (TALK[:2], [*TALK, assistant("ok.")]):
    found = theirs.apply_chat_template(talk, chat_template=template)
    assert found["input_ids"] == encoded(ours, talk, closed)


def test_other_conversations_are_as_they_were(tmp_path):
  ours, theirs = made(tmp_path, "ends")
  template = recipe.template_for_scores(ours.template, False)
  talk = [system("be kind"), *TALK]
  for generate in (True, False):
    first, second = (
      theirs.apply_chat_template(
        talk,
        chat_template=chosen,
        add_generation_prompt=generate,
        tokenize=False,
      )
      for chosen in (template, None)
    )
    assert first == second
