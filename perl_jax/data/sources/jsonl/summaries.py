"""Summaries of Reddit's posts and of news, as OpenAI's files have them.

Stiennon et al. 2020 (arXiv 2009.01325) published comparisons of two summaries,
and posts with the summaries of those who wrote them. What was asked is in parts
there; put together it is the prompt of their models, which other copies of the
data have as a text.
"""

from typing import Any

from perl_jax.data.sources.jsonl import rated

Fields = dict[str, Any]
REPLIES = ("summary_0", "summary_1")
VERDICT = "choice"
_POST = ("subreddit", "title", "post")


def apart(fields: Fields) -> Fields:
  """Returns a row of such a file with its prompt, and a text for each summary.

  A comparison gets the summaries as `REPLIES`, beside its `choice`; a post gets
  its summary as the response. Other rows are returned as they are.
  """
  info, both = fields.get("info"), fields.get("summaries")
  if isinstance(info, dict) and VERDICT in fields and _are_two(both):
    asked = _asked(info)
    texts = {name: one["text"] for name, one in zip(REPLIES, both, strict=True)}
    rest = rated.without(fields, ("info", "summaries"))
    return rest | texts | {"prompt": asked} if asked else fields
  said = fields.get("summary")
  if not isinstance(said, str) or {"prompt", "response"} & {*fields}:
    return fields
  asked = _asked({name: fields.get(name) for name in _POST})
  rest = rated.without(fields, (*_POST, "summary"))
  return rest | {"prompt": asked, "response": said} if asked else fields


def _are_two(summaries: Any) -> bool:
  return (
    isinstance(summaries, list)
    and len(summaries) == len(REPLIES)
    and all(isinstance(one, dict) and "text" in one for one in summaries)
  )


def _asked(info: Fields) -> str:
  """The prompt of a post or an article, or "" if it is neither."""
  subreddit, title, post = (info.get(name) for name in _POST)
  if isinstance(post, str) and isinstance(subreddit, str):
    return (
      f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title or ''}\n\nPOST: {post}\n\n"
      "TL;DR:"
    )
  article = info.get("article")
  return f"Article:\n\n{article}\n\nTL;DR:" if isinstance(article, str) else ""
