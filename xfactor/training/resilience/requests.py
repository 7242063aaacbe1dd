"""Requests of people and schedulers to a running process."""

import time

from xfactor.training import control


class Requests:
  """What this process asks of all, and what all have agreed on.

  Attributes:
    agreed: NOTHING, SAVE or STOP; the same on all processes.
  """

  def __init__(self, minutes: float, *, decides: bool):
    """Begins.

    Args:
      minutes: From the end of a save to the next that is asked for; 0 never
        asks.
      decides: Whether it is this process's clock that counts.
    """
    self.agreed = control.NOTHING
    self._seconds = minutes * 60 if minutes and decides else float('inf')
    self.saved()

  def ask(self, *, stop: bool) -> int:
    """What to ask for with the next step."""
    if stop:
      return control.STOP
    if time.monotonic() - self._since < self._seconds:
      return control.NOTHING
    self._since = float('inf')  # Once is enough.
    return control.SAVE

  def hear(self, request: int) -> None:
    """Takes the largest request of a step."""
    self.agreed = max(self.agreed, request)

  def saving(self) -> None:
    """A save has begun."""
    self._since = float('inf')
    if self.agreed == control.SAVE:
      self.agreed = control.NOTHING

  def saved(self) -> None:
    """The last save is on disk."""
    self._since = time.monotonic()
