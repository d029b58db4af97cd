"""The chat template with which others tokenise as a reward model was trained.

The usual recipe renders a whole conversation, encodes it, and reads the score
of `...ForSequenceClassification` at the last token.
"""

from perl_jax.data.text.template import ChatTemplate


def template_for_scores(template: ChatTemplate, closed: bool) -> str | None:
  """Returns the chat template that others need to score as a run does.

  With it, `apply_chat_template` gives the tokens of the run, on any day.

  Args:
    template: The chat template of the run.
    closed: Whether the score is read at the end of a conversation, and not at
      the end of the turn.

  Returns:
    The template; None if the tokenizer's own will do, or there is none.

  Raises:
    ValueError: A turn of the run does not end as any conversation could.
  """
  unsaid = template.responses.unsaid
  ends_so = template.ends_turn and not template.closing
  if closed or (ends_so and not unsaid):
    return template.text.fixed()
  if unsaid:
    raise ValueError(
      f"The reward model was trained on prompts that end with {unsaid!r}, which"
      f" no conversation of {template.name} has: no chat template gives its"
      " scores to others. Train it with --config.score_at=template."
    )
  stop = template.added.texts[template.stop_ids[0]]
  return template.text.ending_with(
    closing_text(template), "" if template.ends_turn else stop
  )


def closing_text(template: ChatTemplate) -> str:
  """Returns what a template writes at the very end; see `ChatTemplate.closing`.

  Args:
    template: The chat template of a run.
  """
  return "".join(
    template.added.texts[value] if kind == "token" else str(value)
    for kind, value in template.closing
  )
