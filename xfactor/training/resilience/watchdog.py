"""Ends a process that hangs, so that a supervisor can restart it."""

import faulthandler
import sys
import tempfile
import threading

from etils import epath

from xfactor.training.resilience import shutdown

EXIT_CODE = 137

_LOOKS = 20  # Checks within the time allowed without progress.
_PATIENCE = 20.0  # Seconds to write the stacks.


class Watchdog:
  """Ends the process with code 137 after too long without progress.

  First it writes the stacks of all threads to stderr and to
  WORKDIR/stacks-PROCESS.txt. The other processes of the run notice the missing
  process and end, too. The time in which a process is suspended does not count.
  """

  def __init__(self, workdir: epath.PathLike, minutes: float, process: int):
    """Starts watching.

    Args:
      workdir: Folder of the run.
      minutes: Minutes allowed without progress; 0 disables.
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
    """Notes progress; call it after each unit of work."""
    self._idle = 0

  def close(self) -> None:
    """Stops watching."""
    self._closed.set()
    if self._minutes:
      self._thread.join()

  def _watch(self) -> None:
    # Counts checks, not seconds: a suspended process does not check.
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
      with tempfile.TemporaryFile('w+') as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        stacks = file.read()
      # The disk or the bucket may be what hangs.
      write = threading.Thread(
        target=self._file.write_text, args=(stacks,), daemon=True
      )
      write.start()
      write.join(_PATIENCE)
    finally:
      shutdown.leave(EXIT_CODE)
