"""The one exception that a user, rather than a programmer, should read."""


class UserError(Exception):
  """Bad input: its message is one sentence that names the cause and the cure.

  Every binary prints the message on one line, without a traceback, and exits
  with code 2, which supervisors take to mean "do not restart".
  """
