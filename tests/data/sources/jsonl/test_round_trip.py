"""A drawn conversation, written in every shape, is read back as it was."""

import json

import hypothesis
from hypothesis import strategies as st

from perl_jax.data.records import reply_of
from perl_jax.data.sources.jsonl import files
from tests.data.text.messages import assistant, system, user

# Contents begin and end with a letter: shapes of plain text have no way to say
# what white space at the ends of a content means.
_LETTERS = st.characters(categories=("L", "N"), exclude_characters="\x00")
_INNER = st.characters(exclude_categories=("Cs",), exclude_characters="\x00")
CONTENTS = st.builds(
  "{}{}{}".format, _LETTERS, st.text(_INNER, max_size=12), _LETTERS
)


@st.composite
def talks(draw):
  """A prompt that ends with the user, and two different replies."""
  prompt = [system(draw(CONTENTS))] if draw(st.booleans()) else []
  for _ in range(draw(st.integers(0, 2))):
    prompt += [user(draw(CONTENTS)), assistant(draw(CONTENTS))]
  prompt.append(user(draw(CONTENTS)))
  replies = draw(st.lists(CONTENTS, min_size=2, max_size=2, unique=True))
  return prompt, *replies


def sharegpt(messages):
  names = {"user": "human", "assistant": "gpt", "system": "system"}
  return [{"from": names[m["role"]], "value": m["content"]} for m in messages]


def columns(messages):
  return {key: [m[key] for m in messages] for key in ("role", "content")}


def transcript(messages):
  names = {"user": "Human", "assistant": "Assistant"}
  return "".join(f"\n\n{names[m['role']]}: {m['content']}" for m in messages)


def is_plain(prompt, *replies):
  """Whether transcripts can say it: no system, no marker in a content."""
  said = [m["content"] for m in prompt] + list(replies)
  return prompt[0]["role"] == "user" and not any(
    marker in text
    for text in said
    for marker in ("\n\nHuman:", "\n\nAssistant:")
  )


def pairs(prompt, good, bad):
  """Rows with a prompt and two replies."""
  whole = [[*prompt, assistant(reply)] for reply in (good, bad)]
  sides = dict(zip(("chosen", "rejected"), whole))
  yield {"prompt": prompt, "chosen": good, "rejected": bad}
  yield {"prompt": prompt} | {k: v[-1:] for k, v in sides.items()}
  yield {"prompt": prompt} | {k: v[-1] for k, v in sides.items()}
  yield sides
  yield {"prompt": prompt} | sides
  yield {"prompt": f" {prompt[-1]['content']}\n"} | sides
  yield {"prompt": prompt[-1:]} | sides
  yield {k: sharegpt(v) for k, v in sides.items()}
  yield {k: columns(v) for k, v in sides.items()}
  yield {"prompt": prompt, "chosen": [good], "rejected": [bad]}
  yield {"conversations": sharegpt(prompt), "chosen": good, "rejected": bad}
  if is_plain(prompt, good, bad):
    yield {k: transcript(v) for k, v in sides.items()}
    head = transcript(prompt) + "\n\nAssistant:"
    yield {"prompt": head, "chosen": f" {good}", "rejected": f" {bad}"}
  if len(prompt) == 1:
    text = prompt[0]["content"]
    yield {"prompt": text, "chosen": good, "rejected": bad}
    yield {"instruction": text, "input": "", "chosen": good, "rejected": bad}


def answers(prompt, reply):
  """Rows with a prompt and a response."""
  whole = [*prompt, assistant(reply)]
  yield {"messages": whole}
  yield {"prompt": prompt, "response": reply}
  yield {"prompt": prompt, "completion": [assistant(reply)]}
  yield {"conversations": sharegpt(whole)}
  yield {"conversations": whole}
  yield {"messages": columns(whole)}
  *before, last = prompt
  if len(prompt) % 2 and all(m["role"] != "system" for m in prompt):
    yield {
      "instruction": last["content"],
      "output": reply,
      "history": [
        [q["content"], a["content"]] for q, a in zip(before[::2], before[1::2])
      ],
    }


def read(path, rows, kind):
  text = "".join(json.dumps(row) + "\n" for row in rows)
  path.write_text(text, encoding="utf-8")
  return files.load(str(path), kind, validation_path=str(path)).train


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(talks())
def test_pairs(tmp_path_factory, talk):
  prompt, good, bad = talk
  rows = list(pairs(*talk))
  path = tmp_path_factory.getbasetemp() / "pairs.jsonl"
  for row, found in zip(rows, read(path, rows, "preferences"), strict=True):
    assert list(found.prompt) == prompt, row
    assert (found.chosen, found.rejected) == (good, bad), row
  for row, found in zip(rows, read(path, rows, "prompts"), strict=True):
    assert list(found.prompt) == prompt, row


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(talks())
def test_answers(tmp_path_factory, talk):
  prompt, reply, _ = talk
  rows = list(answers(prompt, reply))
  path = tmp_path_factory.getbasetemp() / "answers.jsonl"
  for row, found in zip(rows, read(path, rows, "demonstrations"), strict=True):
    assert [*found.prompt, *found.turns] == [*prompt, assistant(reply)], row
    assert reply_of(found.turns[-1]) == reply
  for row, found in zip(rows, read(path, rows, "prompts"), strict=True):
    assert (list(found.prompt), found.reference) == (prompt, reply), row
  labelled = [row | {"label": n % 2} for n, row in enumerate(rows)]
  read_back = read(path, labelled, "labelled")
  for n, found in enumerate(read_back):
    assert (list(found.prompt), found.response) == (prompt, reply)
    assert found.label == n % 2
