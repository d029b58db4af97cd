"""Short constructors of chat messages, and a short conversation."""


def message(role, content):
  return {"role": role, "content": content}


def user(content):
  return message("user", content)


def assistant(content):
  return message("assistant", content)


def system(content):
  return message("system", content)


TALK = [user("hello there"), assistant("what can I get you?"), user("12 milk")]
