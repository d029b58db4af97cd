"""Plans of a chat template: the tokens and text around the contents."""

import re
from collections.abc import Sequence

from perl_jax.data.text import rendering
from perl_jax.data.text.added_tokens import AddedTokens, Piece
from perl_jax.data.text.responses import Responses

# Matches `rendering.HOLE`.
_HOLE_PATTERN = re.compile(r"Xq7Zk(\d{5})kZ7qX")


class Plans:
  """Plans of one tokenizer's chat template; each is made once."""

  def __init__(
    self,
    text: rendering.Rendering,
    added: AddedTokens,
    responses: Responses | None = None,
  ) -> None:
    """Prepares to make plans.

    Args:
      text: Renders messages.
      added: The added tokens of the tokenizer.
      responses: The texts of responses; None if they are not known yet, so that
        plans have contents in their place.
    """
    self._text = text
    self._added = added
    self._responses = responses
    self._plans: dict[tuple[tuple[str, ...], bool], tuple[Piece, ...]] = {}

  def of(
    self, roles: tuple[str, ...], generate: bool = True
  ) -> tuple[Piece, ...]:
    """Renders `roles` with a hole for each content, and cuts up the text.

    Args:
      roles: Roles of the messages.
      generate: Whether a generation prompt follows them.

    Raises:
      ValueError: The template refuses the messages, or leaves one out.
    """
    if (roles, generate) in self._plans:
      return self._plans[roles, generate]
    holes = [
      {"role": role, "content": rendering.HOLE.format(i)}
      for i, role in enumerate(roles)
    ]
    text = self._text.render(holes, generate)
    pieces: list[Piece] = []
    for i, part in enumerate(_HOLE_PATTERN.split(text)):
      pieces += [("content", int(part))] if i % 2 else self._added.cut(part)
    pieces = self._with_responses(pieces, roles)
    for i, role in enumerate(roles):
      if ("content", i) not in pieces and ("response", i) not in pieces:
        raise ValueError(
          f"The chat template of {self._text.name} leaves out the content of a "
          f"message of role {role!r}. Leave such messages out, or change the "
          "template."
        )
    self._plans[roles, generate] = tuple(pieces)
    return self._plans[roles, generate]

  def text_of(self, piece: Piece) -> str:
    """Returns the text of a piece; "" for a hole."""
    kind, value = piece
    if kind == "token":
      return self._added.texts[value]
    return value if kind == "text" else ""

  def _with_responses(
    self, pieces: Sequence[Piece], roles: Sequence[str]
  ) -> list[Piece]:
    """Turns assistant contents and the space around them into responses.

    That is done where the template writes before them what a prompt ends with;
    other turns are not as a model writes them (Qwen3, DeepSeek-R1).
    """
    if self._responses is None:
      return list(pieces)
    lead, tail = self._responses.lead, self._responses.tail
    found: list[Piece] = []
    since = ""  # The text behind the last content.
    pieces = [*pieces, ("text", "")]
    for i, (kind, value) in enumerate(pieces[:-1]):
      if kind == "text" and tail and found and found[-1][0] == "response":
        continue  # The tail, which is part of the response.
      if kind != "content":
        since += self.text_of((kind, value))
        found.append((kind, value))
        continue
      if (
        roles[value] == "assistant"
        and since.endswith(self._responses.opener + lead)
        and (not tail or pieces[i + 1] == ("text", tail))
      ):
        if lead:
          kept = str(found[-1][1])
          found[-1] = ("text", kept[: len(kept) - len(lead)])
        kind = "response"
      since = ""
      found.append((kind, value))
    return [piece for piece in found if piece != ("text", "")]
