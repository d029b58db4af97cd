"""The error of a step that ended before it changed anything."""


class UndoneStepError(ValueError):
  """A step was not made: the state that it was to start from is whole.

  The loop saves that state and ends the run with the message of the error.
  """
