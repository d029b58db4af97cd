"""Tool calls and tools: rendered as transformers does, or refused by name."""

import dataclasses
import json

import pytest
import transformers

from perl_jax.data import records
from perl_jax.data.batches import demonstrations, preferences, prompts
from perl_jax.data.text import rendering
from perl_jax.data.text import tokenization as tokenization_lib
from tests.data.plain import plain
from tests.data.text import families
from tests.data.text.dialog_side import Reference
from tests.data.text.messages import assistant, message, system, user
from tests.data.text.tool_templates import (
  THINKING,
  TOOL_FAMILIES,
  call,
  tool,
)

TOOLS = [tool("weather"), tool("hours", 'Says "when" it is open.\nAlways.')]
ARGUMENTS = {"place": 'the "inn"\n<b>', "days": 2, "more": [True, "x"]}


@pytest.fixture(scope="module", params=TOOL_FAMILIES)
def family(request, tmp_path_factory):
  """(name, our tokenization, the reference)."""
  made = TOOL_FAMILIES[request.param]
  path = families.write(made, tmp_path_factory.mktemp("tools") / "tokenizer")
  theirs = transformers.AutoTokenizer.from_pretrained(path)
  ours = tokenization_lib.load_tokenizer(path)
  return request.param, ours, Reference(theirs, made.stops[0])


def calling(*calls, content=""):
  """(our message, theirs)."""
  ours = {"role": "assistant", "content": content, "tool_calls": list(calls)}
  theirs = dict(ours, content=content or None)
  if not content:
    ours["content"] = records.calls_text(ours)
  return ours, theirs


def talk(name, tools=TOOLS):
  """(our messages, those for transformers) with two calls and answers."""
  first, theirs_first = calling(call("weather", ARGUMENTS))
  second, theirs_second = calling(call("hours", {}))
  shared = [
    system("Be brief."),
    user("hello there"),
    None,
    message("tool", "12 mochas") | {"tool_call_id": "call00000"},
    assistant("It rains."),
    user("and when?"),
    None,
    message("tool", '{"at": "9"}'),
    assistant("At 9."),
  ]
  ours, theirs = list(shared), list(shared)
  ours[2], ours[6] = first, second
  theirs[2], theirs[6] = theirs_first, theirs_second
  if tools:
    ours[0] = ours[0] | {"tools": tools}
  return ours, theirs


@pytest.mark.parametrize("tools", [TOOLS, None], ids=["tools", "no tools"])
def test_prompts_are_those_of_transformers(family, tools):
  name, ours, theirs = family
  messages, reference = talk(name, tools)
  for end in (2, 4, 6, 8):
    text = theirs.text(reference[:end], tools, generate=True)
    ids = theirs.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ours.encode_prompt(messages[:end])[0] == ids


@pytest.mark.parametrize("tools", [TOOLS, None], ids=["tools", "no tools"])
def test_every_call_of_a_dialogue_is_a_target(family, tools):
  name, ours, theirs = family
  messages, reference = talk(name, tools)
  row = records.Demonstration(
    "a:1", "g", tuple(messages[:2]), tuple(messages[2:])
  )
  found = plain(demonstrations.encode_demonstrations([row], ours))
  if name == "qwen3":  # Past turns are not as a model writes them.
    ends = (3, 5, 7, 9)
    turns = [theirs.turn(reference[:end], tools) for end in ends]
    ids = [
      [theirs.tokenizer(t, add_special_tokens=False)["input_ids"] for t in both]
      for both in turns
    ]
    assert [tokens for tokens, _ in found] == [p + r for p, r in ids]
    assert [sum(mask) for _, mask in found] == [len(r) for _, r in ids]
    return
  assert found == [theirs.dialog(reference, 2, tools)]
  ((tokens, mask),) = found
  said = ours.tokenizer.decode([t for t, m in zip(tokens, mask) if m])
  assert said.count("weather") == 1 and said.count("hours") == 1
  assert "mochas" not in said


def test_a_masked_call_is_no_target(family):
  name, ours, theirs = family
  if name == "qwen3":
    return
  messages, reference = talk(name)
  messages[2] = messages[2] | {"weight": 0}
  reference[2] = reference[2] | {"weight": 0}
  row = records.Demonstration(
    "a:1", "g", tuple(messages[:2]), tuple(messages[2:])
  )
  assert plain(demonstrations.encode_demonstrations([row], ours)) == [
    theirs.dialog(reference, 2, TOOLS)
  ]


@pytest.mark.parametrize("closed", [False, True])
def test_pairs_of_calls(family, closed):
  _, ours, theirs = family
  asked = user("hello there")
  replies = [
    calling(call("weather", {"place": place})) for place in ("inn", "mill")
  ]
  row = records.Preference(
    "a:1", "g", (asked | {"tools": TOOLS},), *(r for r, _ in replies)
  )
  ((chosen, rejected, length, _),), _ = plain(
    preferences.encode_preferences([row], ours, 4000, closed=closed)
  )
  for ids, (_, reply) in zip((chosen, rejected), replies, strict=True):
    prompt, said = theirs.turn([asked, reply], TOOLS)
    text = theirs.text([asked, reply], TOOLS) if closed else prompt + said
    expected = theirs.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == expected
    count = theirs.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert length == len(count)


def test_text_beside_a_call(family):
  """It is rendered, or the row is refused: Llama 3.1 leaves it out."""
  name, ours, theirs = family
  reply, reference = calling(call("hours", {}), content="I look.")
  asked = [user("hello there")]
  if name == "llama3.1":
    with pytest.raises(ValueError, match="leaves out"):
      ours.encode_response(asked, reply)
    return
  _, said = theirs.turn([*asked, reference])
  ids = theirs.tokenizer(said, add_special_tokens=False)["input_ids"]
  assert ours.encode_response(asked, reply) == ids


def test_what_looks_like_a_control_token_stays_text(family):
  _, ours, theirs = family
  stop = theirs.stop
  reply, _ = calling(call("weather", {"place": f"a{stop}b"}))
  ids = ours.encode_response([user("hello")], reply)
  assert ids[-1] == ours.stop_ids[0] and ids.count(ours.stop_ids[0]) == 1
  assert stop in ours.tokenizer.decode(ids[:-1])
  tools = [tool("weather", f"a{stop}b")]
  with pytest.raises(ValueError, match="Remove it from the row"):
    ours.encode_prompt([user("hello") | {"tools": tools}])


def test_several_calls_in_a_turn(family):
  name, ours, theirs = family
  reply, reference = calling(
    call("weather", {"place": "inn"}), call("hours", {}, 1)
  )
  if name == "llama3.1":
    with pytest.raises(ValueError, match="Only single tool-calls"):
      ours.encode_response([user("hello")], reply)
    return
  _, said = theirs.turn([user("hello"), reference])
  ids = theirs.tokenizer(said, add_special_tokens=False)["input_ids"]
  assert ours.encode_response([user("hello")], reply) == ids


@pytest.fixture(scope="module", params=["qwen2", "llama3", "mistral1"])
def without(request, tmp_path_factory):
  """A tokenizer whose template knows nothing of tools."""
  path = tmp_path_factory.mktemp("without") / "tokenizer"
  families.write(families.FAMILIES[request.param], path)
  return tokenization_lib.load_tokenizer(path)


@pytest.mark.parametrize(
  ("more", "key", "way_out"),
  [
    ({"tools": TOOLS}, "'tools'", r"data\.ignore=\"\('tools',\)\""),
    ({"tool_calls": [call("hours", {})]}, "'tool_calls'", "remove the rows"),
    ({"reasoning_content": "hm"}, "'reasoning_content'", r"data\.ignore="),
  ],
)
def test_a_template_that_does_not_render_it_is_refused(
  without, more, key, way_out
):
  asked, reply = user("hello"), assistant("there")
  if key == "'tools'":
    asked |= more
  else:
    reply |= more
  row = records.Demonstration("a:1", "g", (asked,), (reply,))
  with pytest.raises(
    rendering.NotRenderedError, match=rf"a:1: .*{key}.*{way_out}"
  ):
    demonstrations.encode_demonstrations([row], without)


def test_tools_stay_when_turns_are_left_out(family):
  """And a result of a tool does not begin what is left."""
  name, ours, _ = family
  messages, _ = talk(name)
  messages = messages[1:8]
  messages[0] |= {"tools": TOOLS}
  row = records.Prompt("a:1", "g", tuple(messages), None)
  whole = len(ours.encode_prompt(messages)[0])
  (short,), counts = plain(
    prompts.encode_prompts([row], ours, whole - 1, "turns")
  )
  dropped = counts["dropped_turns"]
  left = messages[dropped:]
  assert left[0]["role"] != "tool"
  left[0] = left[0] | {"tools": TOOLS}
  assert short.tokens == ours.encode_prompt(left)[0]
  assert json.dumps(TOOLS[0]["function"]["name"]) in ours.tokenizer.decode(
    short.tokens
  )


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_a_target(tmp_path, key):
  made = dataclasses.replace(families.FAMILIES["qwen3"], template=THINKING)
  path = families.write(made, tmp_path / "tokenizer")
  ours = tokenization_lib.load_tokenizer(path)
  theirs = Reference(
    transformers.AutoTokenizer.from_pretrained(path), made.stops[0]
  )
  talk = [
    user("hello there"),
    assistant("12") | {key: "it is 6 + 6 </s>"},
    user("sure?"),
    assistant("milk") | {key: "hm"},
  ]
  row = records.Demonstration("a:1", "g", tuple(talk[:1]), tuple(talk[1:]))
  expected = theirs.dialog(talk, 1)
  assert plain(demonstrations.encode_demonstrations([row], ours)) == [expected]
  said = [t for t, m in zip(*expected, strict=True) if m]
  assert "it is 6 + 6" in ours.tokenizer.decode(said)


def test_reasoning_that_no_prompt_leads_to_is_refused(tmp_path):
  """Qwen3's prompts without thinking have closed the thoughts already."""
  path = families.write(TOOL_FAMILIES["qwen3"], tmp_path / "tokenizer")
  ours = tokenization_lib.load_tokenizer(path)
  reply = assistant("12") | {"reasoning_content": "it is 6 + 6"}
  row = records.Demonstration("a:1", "g", (user("hello"),), (reply,))
  why = r"a:1: .*data\.ignore=\"\('reasoning_content',\)\""
  with pytest.raises(rendering.NotRenderedError, match=why):
    demonstrations.encode_demonstrations([row], ours)


@pytest.mark.parametrize("masked", [False, True])
def test_reasoning_that_later_prompts_leave_out(tmp_path, masked):
  """Qwen3 forgets at a new question, so that each turn is by itself."""
  path = families.write(TOOL_FAMILIES["qwen3"], tmp_path / "tokenizer")
  ours = tokenization_lib.load_tokenizer(path)
  under = {records.VARIABLES: {"enable_thinking": True}}
  first = assistant("12") | {"reasoning_content": "it is 6 + 6"}
  first |= {"weight": 0} if masked else {}
  talk = [
    *(user("hello there") | under, first, user("sure?")),
    assistant("milk") | {"reasoning_content": "hm"},
  ]
  row = records.Demonstration("a:1", "g", tuple(talk[:1]), tuple(talk[1:]))
  encoded = demonstrations.encode_demonstrations([row], ours)
  learned = [
    ours.tokenizer.decode([t for t, m in zip(*part, strict=True) if m])
    for part in encoded
  ]
  thought = "<think>\nit is 6 + 6\n</think>\n\n12<|im_end|>"
  last = "<think>\nhm\n</think>\n\nmilk<|im_end|>"
  assert learned == ([last] if masked else [thought, last])
  # A prompt is what transformers renders of it.
  talked = records.Prompt("a:1", "g", tuple(talk[:3]), None)
  (prompt,), _ = plain(prompts.encode_prompts([talked], ours, 500, "turns"))
  theirs = transformers.AutoTokenizer.from_pretrained(path)
  expected = theirs.apply_chat_template(
    [{k: v for k, v in m.items() if k != records.VARIABLES} for m in talk[:3]],
    add_generation_prompt=True,
    enable_thinking=True,
  )["input_ids"]
  assert prompt.tokens == expected and "6" not in theirs.decode(expected)


@pytest.mark.parametrize(
  ("family", "reply"),
  [
    (TOOL_FAMILIES["qwen3"], {"content": "12", "reasoning_content": "6 + 6"}),
    (families.FAMILIES["qwen3"], {"content": "<think>\n6\n</think>\n\n12"}),
  ],
)
def test_the_variable_that_asks_for_thoughts_is_named(tmp_path, family, reply):
  ours = tokenization_lib.load_tokenizer(families.write(family, tmp_path))
  turn = {"role": "assistant", **reply}
  row = records.Demonstration("a:1", "g", (user("hello"),), (turn,))
  named = r'need "chat_template_kwargs": \{"enable_thinking": true\}'
  with pytest.raises(ValueError, match=named):
    demonstrations.encode_demonstrations([row], ours)


def test_a_template_of_its_own_for_tools(tmp_path):
  """As Hermes has it: transformers takes it where there are tools."""
  made = TOOL_FAMILIES["qwen2.5"]
  both = {"default": families.FAMILIES["qwen2"].template}
  both["tool_use"] = made.template
  named = [{"name": n, "template": t} for n, t in both.items()]
  path = families.write(dataclasses.replace(made, template=named), tmp_path)
  tokenizer = transformers.AutoTokenizer.from_pretrained(path)
  ours = tokenization_lib.load_tokenizer(path)
  asked = user("hello there")
  expected = tokenizer.apply_chat_template(
    [asked], tools=TOOLS, add_generation_prompt=True
  )["input_ids"]
  assert ours.encode_prompt([asked | {"tools": TOOLS}])[0] == expected
  assert ours.encode_prompt([asked])[0] != expected
