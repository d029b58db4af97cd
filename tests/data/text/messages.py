"""Messages, written short."""


def message(role, content):
  return {"role": role, "content": content}


def user(content):
  return message("user", content)


def assistant(content):
  return message("assistant", content)


def system(content):
  return message("system", content)
