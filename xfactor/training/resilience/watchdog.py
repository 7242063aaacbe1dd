"""Ends a process that hangs, so that a supervisor can start it again."""

import faulthandler
import sys
import threading

from etils import epath

from xfactor.training.resilience import shutdown

EXIT_CODE = 137

_LOOKS = 20  # In the time that may pass without progress.


class Watchdog:
  """Kills the process with code 137 where there is no progress for too long.

  Before that it writes where all threads are to stderr and to
  WORKDIR/stacks-PROCESS.txt. The other processes of a run miss the killed one
  and end, too. A process that was suspended as a whole is not hanging.
  """

  def __init__(self, workdir: epath.PathLike, minutes: float, process: int):
    """Starts to watch.

    Args:
      workdir: Folder of the run.
      minutes: Without progress before it is killed; 0 never kills.
      process: Number of this process.
    """
    self._file = epath.Path(workdir) / f'stacks-{process}.txt'
    self._minutes = minutes
    self._idle = 0
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    if minutes:
      self._thread.start()

  def progress(self) -> None:
    """To be called wherever something was achieved."""
    self._idle = 0

  def close(self) -> None:
    """Ends the watch."""
    self._closed.set()
    if self._minutes:
      self._thread.join()

  def _watch(self) -> None:
    # Looks are counted, not seconds: a suspended process does not look.
    while not self._closed.wait(self._minutes * 60 / _LOOKS):
      self._idle += 1
      if self._idle > _LOOKS:
        self._kill()

  def _kill(self) -> None:
    try:
      print(
        f'error: no progress for {self._minutes:g} minutes '
        f'(config.train.watchdog_minutes); the stacks are in {self._file}',
        file=sys.stderr,
        flush=True,
      )
      faulthandler.dump_traceback(sys.__stderr__)
      with open(self._file, 'w') as f:
        faulthandler.dump_traceback(f)
    finally:
      shutdown.leave(EXIT_CODE)
