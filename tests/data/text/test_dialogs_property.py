"""Drawn conversations: tokens and mask are those of transformers.

The reference renders and tokenises with transformers and finds the targets by
offsets in the text (`dialog_side`), or takes the mask that transformers itself
makes of a template with `{% generation %}`.
"""

import dataclasses

import hypothesis
import pytest
import transformers
from hypothesis import strategies as st

from perl_jax.data import records
from perl_jax.data.batches import demonstrations
from perl_jax.data.text import tokenization as tokenization_lib
from tests.data.plain import plain
from tests.data.text import families
from tests.data.text.dialog_side import Reference
from tests.data.text.families import FAMILIES
from tests.data.text.messages import assistant, message, system, user
from tests.data.text.tool_templates import TOOL_FAMILIES, call, tool

GENERATION = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
  "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
  "{{ '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content }}"
  "{{ '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MADE = {name: TOOL_FAMILIES[name] for name in ("qwen2.5", "llama3.1")} | {
  "generation": dataclasses.replace(FAMILIES["qwen2.5"], template=GENERATION)
}
settings = hypothesis.settings(
  max_examples=60,
  deadline=None,
  derandomize=True,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)

# A response shares no token with the prompt before it, so it begins with what
# no tokenizer joins with a line break.
_FIRST = st.sampled_from(list("abAZ09{<é日🙂"))
_REST = st.text(
  st.sampled_from(list("ab z09 \n\t{}\"'\\<|>/é日🙂\u2028")), max_size=12
)
texts = st.builds(str.__add__, _FIRST, _REST)
arguments = st.dictionaries(
  st.sampled_from(["place", "n", "more"]),
  st.one_of(texts, st.integers(0, 99), st.booleans(), st.lists(texts)),
  max_size=2,
)


@st.composite
def dialogs(draw, calls):
  """(messages, tools): a conversation that ends with a target."""
  talk = [system(draw(texts))] if draw(st.booleans()) else []
  tools = None
  if calls and draw(st.booleans()):
    tools = [tool(draw(st.sampled_from(["look", "find"])), draw(texts))]
  for _ in range(draw(st.integers(1, 3))):
    talk.append(user(draw(texts)))
    if calls and draw(st.booleans()):
      found = {"tool_calls": [call("look", draw(arguments))]}
      talk.append(assistant("") | found)
      talk.append(message("tool", draw(texts)))
    talk.append(assistant(draw(texts)))
  for turn in talk:
    if turn["role"] == "assistant" and draw(st.integers(0, 3)) == 0:
      turn["weight"] = draw(st.sampled_from([0, 1]))
  talk[-1].pop("weight", None)
  return talk, tools


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Our tokenization and transformers' tokenizer, by name."""
  root = tmp_path_factory.mktemp("dialogs")
  paths = {name: families.write(f, root / name) for name, f in MADE.items()}
  return {
    name: (
      tokenization_lib.load_tokenizer(path),
      transformers.AutoTokenizer.from_pretrained(path),
    )
    for name, path in paths.items()
  }


def encoded(ours, talk, tools, given):
  """Tokens and mask as a stage reads them."""
  talk = [dict(turn) for turn in talk]
  for turn in talk:
    if "tool_calls" in turn:
      turn["content"] = records.calls_text(turn)
  if tools:
    talk[0]["tools"] = tools
  row = records.Demonstration(
    "a", "g", tuple(talk[:given]), tuple(talk[given:])
  )
  (found,) = plain(demonstrations.encode_demonstrations([row], ours))
  return found


def first_answer(talk):
  return next(i for i, t in enumerate(talk) if t["role"] == "assistant")


@pytest.mark.parametrize("name", ["qwen2.5", "llama3.1"])
@settings
@hypothesis.given(dialog=dialogs(calls=True))
def test_tokens_and_mask_of_dialogs_with_tools(made, name, dialog):
  talk, tools = dialog
  ours, tokenizer = made[name]
  given = first_answer(talk)
  reference = Reference(tokenizer, MADE[name].stops[0])
  expected = reference.dialog(talk, given, tools)
  assert encoded(ours, talk, tools, given) == expected


@settings
@hypothesis.given(dialog=dialogs(calls=False))
def test_the_mask_is_that_of_transformers(made, dialog):
  """It has no weights, so all answers are targets here."""
  talk = [{k: v for k, v in m.items() if k != "weight"} for m in dialog[0]]
  ours, tokenizer = made["generation"]
  found = tokenizer.apply_chat_template(
    talk, return_dict=True, return_assistant_tokens_mask=True
  )
  tokens, mask = encoded(ours, talk, None, first_answer(talk))
  assert found["input_ids"][: len(tokens)] == tokens
  assert found["assistant_masks"] == [*map(int, mask)] + [0] * (
    len(found["input_ids"]) - len(tokens)
  )
