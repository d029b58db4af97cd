"""Puts the tokens of a filled plan together."""

from collections.abc import Mapping, Sequence

from perl_jax.data.text.encoder import Encoder
from perl_jax.data.text.template import ChatTemplate, Piece


def assemble(
  encoder: Encoder,
  template: ChatTemplate,
  pieces: Sequence[Piece],
  contents: Mapping[int, str],
  targets: frozenset[int],
) -> tuple[list[int], list[bool]]:
  """Returns the tokens of filled pieces, and a mask of those in `targets`.

  Args:
    encoder: Encodes text.
    template: The chat template that the pieces are of.
    pieces: Tokens, literal text and holes.
    contents: The text of each hole.
    targets: Holes of responses that are targets, with the stop token behind.
  """
  ids = list(template.prefix)
  mask = [False] * len(ids)
  run, said = "", ""

  def extend(more: Sequence[int], is_target: bool) -> None:
    ids.extend(more)
    mask.extend([is_target] * len(more))

  def finish_run(after: int | None = None) -> None:
    nonlocal run, said
    run = template.added.strip(run, ids[-1] if ids else None, after)
    first = len(ids) == len(template.prefix)
    more = encoder.after(said, run) if said else encoder.text(run, first)
    extend(more, False)
    run, said = "", ""

  ends_target = False
  for kind, value in pieces:
    if kind == "text":
      run += value
    elif kind == "content":
      run += contents[value]
    elif kind == "response":
      finish_run()
      extend(encoder.response(contents[value]), value in targets)
      said = contents[value]
    elif kind == "call":
      number, turn = value
      finish_run()
      parts = filled(turn, contents)
      extend(encoder.turn(parts), number in targets)
      said = parts[-1][1] if parts[-1][0] == "text" else ""
    else:
      finish_run(value)
      encoder.check([value])
      extend([value], ends_target)
    number = value[0] if kind == "call" else value
    ends_target = kind in ("response", "call") and number in targets
  finish_run()
  return ids, mask


def filled(pieces: Sequence[Piece], contents: Mapping[int, str]) -> list[Piece]:
  """Returns tokens and literal text of pieces, with their holes filled."""
  found: list[Piece] = []
  for kind, value in pieces:
    if kind == "token":
      found.append((kind, value))
      continue
    text = value if kind == "text" else contents[value]
    if found and found[-1][0] == "text":
      text = found.pop()[1] + text
    found.append(("text", text))
  return found
