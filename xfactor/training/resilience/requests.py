"""Requests of this process to save or stop."""

import time

from xfactor.training import control


class Requests:
  """Requests of this process, and what all processes have agreed on.

  Attributes:
    agreed: NOTHING, SAVE or STOP; the same on all processes.
  """

  def __init__(self, minutes: float, *, decides: bool):
    """Starts the clock.

    Args:
      minutes: Minutes from the end of a save to the next request; 0 disables.
      decides: Whether the clock of this process counts.
    """
    self.agreed = control.NOTHING
    self._seconds = minutes * 60 if minutes and decides else float('inf')
    self.saved()

  def ask(self, *, stop: bool) -> int:
    """Returns the request to pass to the next step."""
    if stop:
      return control.STOP
    if time.monotonic() - self._since < self._seconds:
      return control.NOTHING
    self._since = float('inf')  # Request it only once.
    return control.SAVE

  def hear(self, request: int) -> None:
    """Receives the largest request of a step."""
    self.agreed = max(self.agreed, request)

  def saving(self) -> None:
    """Notes that a save has started."""
    self._since = float('inf')
    if self.agreed == control.SAVE:
      self.agreed = control.NOTHING

  def saved(self) -> None:
    """Notes that the last save is on disk."""
    self._since = time.monotonic()
