"""Rows as people have them become the fields that records are made of."""

import pytest

from perl_jax.data.sources.jsonl import described
from tests.data.sources.jsonl.formed import PAIR, RATED, one, read
from tests.data.text.messages import assistant, system, user


class TestPairs:
  """The prompt is what both sides share, if it contains `prompt`."""

  @pytest.mark.parametrize(
    ("row", "prompt"),
    [
      ({}, [user("q")]),
      ({"prompt": "q"}, [user("q")]),
      ({"prompt": " q\n"}, [user("q")]),
      ({"prompt": [user("q ")]}, [user("q")]),
      ({"prompt": ""}, [user("q")]),
      ({"prompt": None}, [user("q")]),
    ],
  )
  def test_conversations_that_repeat_the_prompt(self, row, prompt):
    row |= {
      "chosen": [user("q"), assistant("a")],
      "rejected": [user("q"), assistant("b")],
    }
    assert one(row) == PAIR | {"prompt": prompt}

  def test_all_that_is_shared_is_the_prompt(self):
    shared = [system("s"), user("q"), assistant("x"), user("and?")]
    sides = {
      "chosen": [*shared, assistant("a")],
      "rejected": [*shared, assistant("b")],
    }
    for prompt in ({}, {"prompt": "q"}, {"prompt": "and?"}):
      assert one(prompt | sides) == PAIR | {"prompt": shared}

  def test_what_the_prompt_alone_has_is_kept(self):
    row = PAIR | {
      "prompt": [system("s"), user("q")],
      "chosen": [user("q"), assistant("a")],
      "rejected": [user("q"), assistant("b")],
    }
    assert one(row)["prompt"] == [system("s"), user("q")]

  def test_replies_that_go_on_share_their_beginning(self):
    more = [assistant("x"), user("and?")]
    row = {
      "prompt": [user("q")],
      "chosen": [*more, assistant("a")],
      "rejected": [*more, assistant("b")],
    }
    assert one(row) == PAIR | {"prompt": [user("q"), *more]}

  @pytest.mark.parametrize(
    ("row", "message"),
    [
      ({"prompt": "other"}, "'prompt': is .*other.* begin with .*\"q\""),
      ({"rejected": [user("p"), assistant("b")]}, "'prompt': missing"),
      (
        {"rejected": [user("q"), assistant("x"), user("y"), assistant("b")]},
        "'rejected': has 4 messages .* before their last",
      ),
    ],
  )
  def test_sides_that_do_not_share_it(self, row, message):
    row = {
      "chosen": [user("q"), assistant("a")],
      "rejected": [user("q"), assistant("b")],
    } | row
    with pytest.raises(ValueError, match=rf"f:1: field {message}"):
      one(row)

  def test_sides_in_other_layouts(self):
    turns = {"from": ["human", "gpt"], "value": ["q", "a"]}
    row = {
      "chosen": turns,
      "rejected": [
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": "b"},
      ],
    }
    assert one(row) == PAIR
    row = {"conversations": [{"from": "human", "value": "q"}]}
    row |= {
      "chosen": {"from": "gpt", "value": "a"},
      "rejected": {"from": "gpt", "value": "b"},
    }
    assert one(row) == PAIR
    row = {"messages": [user("q")], "chosen": "a", "rejected": "b"}
    assert one(row) == {"prompt": [user("q")], "chosen": "a", "rejected": "b"}

  @pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "replies"),
    [
      ("The sky is blue.", "The sky is black.", "The sky is", "blue.|black."),
      ("Q: x?\nA: yes", "Q: x?\nA: no", "Q: x?\nA:", "yes|no"),
      ("a b", "a b c", "a", "b|b c"),
      ("a b", "a b", "a", "b|b"),
      ("a b ", "a b c", "a", "b|b c"),
    ],
  )
  def test_texts_that_begin_alike(self, chosen, rejected, prompt, replies):
    found = one({"chosen": chosen, "rejected": rejected})
    assert found["prompt"] == prompt
    assert "|".join((found["chosen"], found["rejected"])) == replies

  def test_texts_without_a_shared_word_are_left_alone(self):
    for row in (
      {"chosen": "yes", "rejected": "yesterday"},
      {"prompt": "p", "chosen": "p a", "rejected": "p b"},
    ):
      assert one(row) == row

  def test_transcripts(self):
    head = "\n\nHuman: q \n\nAssistant: x\n\nHuman: and?\n\nAssistant:"
    row = {"chosen": f"{head} a", "rejected": f"{head} b"}
    prompt = [user("q"), assistant("x"), user("and?")]
    expected = {"prompt": prompt, "chosen": "a", "rejected": "b"}
    assert one(row) == expected
    assert one(row | {"prompt": head}) == expected
    assert one({k: v.lstrip() for k, v in row.items()}) == expected
    assert one({"prompt": head, "chosen": "a", "rejected": "b"}) == expected
    # Those that part early, as `hh_rlhf` reads them.
    row["rejected"] = "\n\nHuman: q \n\nAssistant: y\n\nHuman: so\n\nAssistant:"
    found = one(row)
    assert found["prompt"] == [user("q")]
    assert found["rejected"].startswith("y\n\nHuman: so")
    with pytest.raises(ValueError, match="shares no turn"):
      one(row | {"rejected": "\n\nHuman: r\n\nAssistant: y"})

  def test_lists_of_replies(self):
    row = {"prompt": "q", "chosen": ["a", "b"], "rejected": "c", "subset": "s"}
    assert read(row) == [
      ("f:1#1", row | {"chosen": "a", "rejected": "c"}),
      ("f:1#2", row | {"chosen": "b", "rejected": "c"}),
    ]
    assert len(read(row, kind="prompts")) == 1
    row["rejected"] = [[assistant("c")], [assistant("d")]]
    assert [fields["rejected"] for _, fields in read(row)] == (
      row["rejected"] * 2
    )


class TestScores:
  def test_pairs_by_a_margin(self):
    def pairs(margin, row=RATED):
      return [
        fields["chosen"] + fields["rejected"]
        for _, fields in read(row, margin=margin)
      ]

    assert pairs(1) == ["ba", "ca"]
    assert pairs(0.5) == ["ba", "bc", "ca"]
    assert pairs(4) == []
    row = {
      "instruction": "q",
      "completions": [
        {"response": "a", "overall_score": 1.0, "model": "m"},
        {"response": "b", "overall_score": 4.5, "model": "n"},
        {"response": "c", "overall_score": None, "model": "n"},
      ],
    }
    ((where, fields),) = read(row, margin=1)
    assert where == "f:1#1"
    assert fields == {"prompt": "q", "chosen": "b", "rejected": "a"}

  def test_rows_of_one_prompt(self):
    rows = [
      {"prompt": "q", "response": "a", "score": 1},
      {"prompt": "p", "response": "x", "score": 3},
      {"prompt": "q", "response": "b", "score": 3},
      {"prompt": "q", "response": "c", "score": 3},
    ]
    found = read(*rows, margin=2)
    assert [where for where, _ in found] == ["f:3#1", "f:4#1"]
    assert [f for _, f in found] == [
      {"prompt": "q", "chosen": "b", "rejected": "a"},
      {"prompt": "q", "chosen": "c", "rejected": "a"},
    ]

  def test_labels_by_a_threshold(self):
    found = read(RATED, kind="labelled", threshold=4)
    assert [(f["response"], f["label"]) for _, f in found] == [
      ("a", False), ("b", True), ("c", True),
    ]  # fmt: skip
    row = {"prompt": "q", "completion": "a", "rating": 2}
    assert one(row, "labelled", threshold=2) == {
      "prompt": "q", "completion": "a", "label": True,
    }  # fmt: skip
    row = {"prompt": "q", "response": "a", "label": 0.4}
    assert one(row, "labelled", threshold=0.5)["label"] is False

  def test_nothing_is_made_of_scores_that_nobody_asked_for(self):
    assert one(RATED, "prompts") == {"prompt": "q"}
    row = {"prompt": "q", "response": "a", "score": 1}
    assert one(row, "demonstrations", margin=1, threshold=1) == row
    assert one(row, "preferences") == row
    assert "data.margin=1" in described.hint(row, "preferences")
    assert "data.threshold=" in described.hint(RATED, "labelled")
    assert described.hint(row, "preferences", margin=1) == ""
    assert described.hint({"prompt": "q"}, "preferences") == ""


class TestConversations:
  def test_sharegpt(self):
    row = {
      "id": "1",
      "conversations": [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "q", "weight": 0},
        {"from": "gpt", "value": "a"},
        {"from": "observation", "value": "o"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
      ],
    }
    call = {"tool_calls": [{"name": "f", "arguments": {}}]}
    assert one(row, "demonstrations") == {
      "id": "1",
      "messages": [
        system("s"),
        user("q") | {"weight": 0},
        assistant("a"),
        {"role": "tool", "content": "o"},
        assistant("") | call,
      ],
    }

  @pytest.mark.parametrize(
    "text", ['{"name": "f", "name": 1}', "f()", "[" * 9999]
  )
  def test_a_call_that_is_no_json_is_left_for_the_check(self, text):
    turns = [{"from": "function_call", "value": text}]
    assert one({"conversations": turns}, "demonstrations") == {
      "messages": [assistant("") | {"tool_calls": text}]
    }

  def test_role_and_content_under_either_name(self):
    talk = [user("q"), assistant("a")]
    for name in ("messages", "conversations", "conversation"):
      assert one({name: talk}, "demonstrations") == {"messages": talk}
    columns = {"role": ["user", "assistant"], "content": ["q", "a"]}
    assert one({"messages": columns}, "demonstrations") == {"messages": talk}

  @pytest.mark.parametrize(
    ("row", "expected"),
    [
      ({"instruction": "Add", "input": "", "output": "3"}, "Add"),
      ({"instruction": "Add", "output": "3"}, "Add"),
      ({"instruction": "Add", "input": "1, 2", "output": "3"}, "Add\n\n1, 2"),
      ({"instruction": "", "input": "1, 2", "output": "3"}, "1, 2"),
      (
        {"instruction": "Add", "output": "3", "history": [["q", "a"]]},
        [user("q"), assistant("a"), user("Add")],
      ),
      (
        {
          "instruction": "Add",
          "output": "3",
          "history": [user("q"), assistant("a")],
        },
        [user("q"), assistant("a"), user("Add")],
      ),
    ],
  )
  def test_alpaca(self, row, expected):
    found = one(row, "demonstrations")
    assert found == {"prompt": expected, "response": "3"}

  @pytest.mark.parametrize(
    "history",
    [["Hi there", "Hello"], [["q"]], [["q", "a", "b"]], "Hi", [["q", None]]],
  )
  def test_a_history_that_is_no_conversation(self, history):
    row = {"instruction": "Add", "output": "3", "history": history}
    with pytest.raises(ValueError, match="field 'history': must be a list of"):
      one(row, "demonstrations")

  def test_alpaca_pairs_and_prompts(self):
    row = {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}
    assert one(row) == {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert one({"instruction": "q"}, "prompts") == {"prompt": "q"}


class TestPrompts:
  def test_a_conversation_that_ends_with_the_user(self):
    row = {"messages": [system("s"), user("1+1?")], "ground_truth": "2"}
    expected = {"prompt": row["messages"], "ground_truth": "2"}
    assert one(row, "prompts") == expected
    turns = [{"from": "human", "value": "1+1?"}]
    assert one({"conversations": turns}, "prompts") == {
      "prompt": [user("1+1?")]
    }
    assert one(row, "demonstrations") == row

  def test_a_label_without_a_response_is_no_rating(self):
    for label in ("42", 42, 1, True):
      row = {"prompt": "q", "label": label}
      assert one(row, "prompts") == {"prompt": "q"}
      assert one(row, "labelled") == row
    row = {"prompt": "q", "response": "a", "label": 1}
    assert one(row, "prompts") == row
