"""Checks that prompts are encoded as `transformers` encodes them.

The reference is `apply_chat_template`, which encodes the whole rendered text at
once. On purpose the two may differ in this: a special token in the text of a
content stays text here (the contents of the check have none), and a response
shares no token with the prompt before it, since a sampled one does not. So the
tokens of earlier responses may differ, and their text may not.
"""

from collections.abc import Callable

from perl_jax.data.records import Message
from perl_jax.data.text.rendering import Rendering

# Roles of the conversations that are compared, each with short contents.
_CONVERSATIONS = (
  ("user",),
  ("user", "assistant", "user"),
  ("system", "user"),
  ("system", "user", "assistant", "user"),
)
_CONTENTS = ("Hello there.", "What can I get you?", "12 of them", "and 3")


def check(
  prompt_ids: Callable[[list[Message]], list[int]], text: Rendering
) -> None:
  """Compares the prompts of a few short conversations, token by token.

  Conversations that the template refuses are left out.

  Args:
    prompt_ids: Encodes messages as token ids.
    text: Renders them.

  Raises:
    ValueError: A token differs; names the conversation and both tokens.
  """
  if not text.exists:
    return
  for roles in _CONVERSATIONS:
    messages = text.folded(
      [
        {"role": role, "content": content}
        for role, content in zip(roles, _CONTENTS, strict=False)
      ]
    )
    try:
      ours = prompt_ids(messages)
    except ValueError:  # A role may be unknown, or left out.
      continue
    theirs = text.reference_ids(messages)
    if ours == theirs or (
      "assistant" in roles and text.decode(ours) == text.decode(theirs)
    ):
      continue
    at = next(
      (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
      min(len(ours), len(theirs)),
    )
    raise ValueError(
      f"The prompt for the roles {list(roles)} is not encoded as transformers "
      f"encodes it: from token {at} on it is {text.show(ours[at : at + 4])} "
      f"and should be {text.show(theirs[at : at + 4])}. The tokenizer of "
      f"{text.name} joins what its chat template writes with the contents in a "
      "way that is not supported. Set normalized to false for the added tokens "
      "in its tokenizer.json, or change the template."
    )
