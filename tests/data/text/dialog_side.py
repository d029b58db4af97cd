"""What a dialogue should be as tokens, by transformers and offsets alone."""

OPTIONS = {"enable_thinking": False}


class Reference:
  """Renders and tokenises with transformers; knows nothing of our plans."""

  def __init__(self, tokenizer, stop):
    self.tokenizer = tokenizer
    self.stop = stop

  def text(self, messages, tools=None, generate=False):
    given = [
      {k: v for k, v in m.items() if k not in ("weight", "tools")}
      for m in messages
    ]
    return self.tokenizer.apply_chat_template(
      given, tools=tools, tokenize=False, add_generation_prompt=generate,
      **OPTIONS,
    )  # fmt: skip

  def turn(self, messages, tools=None):
    """The prompt before the last message, and that message with its stop."""
    prompt = self.text(messages[:-1], tools, generate=True)
    whole = self.text(messages, tools)
    assert whole.startswith(prompt)
    end = whole.index(self.stop, len(prompt)) + len(self.stop)
    return prompt, whole[len(prompt) : end]

  def dialog(self, messages, given, tools=None):
    """Tokens and mask of a dialogue in one pass.

    Args:
      messages: The messages.
      given: How many of them are never targets.
      tools: The tools, or None.

    Returns:
      Tokens up to the end of the last target, and whether each is a target: a
      token is if its text lies in an answer with its stop token, and the
      weight of the answer is not 0.
    """
    spans = []
    for i in range(given, len(messages)):
      if messages[i]["role"] == "assistant" and messages[i].get("weight", 1):
        prompt, said = self.turn(messages[: i + 1], tools)
        spans.append((len(prompt), len(prompt) + len(said)))
    text = self.text(messages, tools)[: spans[-1][1]]
    found = self.tokenizer(
      text, add_special_tokens=False, return_offsets_mapping=True
    )
    mask = [
      any(start <= a and b <= end for start, end in spans)
      for a, b in found["offset_mapping"]
    ]
    return found["input_ids"], mask
