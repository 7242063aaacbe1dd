"""Appends to log files; a failed write never stops or holds up a run."""

import os
import sys

from etils import epath

_MOST = 2**22  # Bytes that wait for room on the disk; older ones are dropped.


class Appender:
  """Appends bytes to a file, whole or not at all.

  What cannot be written is kept and tried again with the next bytes; the first
  failure is reported on stderr.
  """

  def __init__(self, path: epath.PathLike):
    self._path = epath.Path(path)
    self._waiting: list[bytes] = []
    self._failed = False

  def append(self, data: bytes) -> None:
    """Appends bytes, after those that are waiting."""
    self._waiting.append(data)
    try:
      self._write(b''.join(self._waiting))
    except OSError as e:
      while sum(map(len, self._waiting)) > _MOST:
        self._waiting.pop(0)
      if not self._failed:
        print(
          f'cannot write {self._path} ({e.strerror}); trying again with each '
          'line of the log',
          file=sys.stderr,
          flush=True,
        )
      self._failed = True
      return
    self._waiting.clear()
    if self._failed:
      print(f'{self._path} can be written again', file=sys.stderr, flush=True)
    self._failed = False

  def end_line(self) -> None:
    """Ends the last line, if a killed run left it unfinished."""
    if not self._path.exists():
      return
    with open(self._path, 'rb') as file:
      file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
      last = file.read()
    if last not in (b'', b'\n'):
      self.append(b'\n')

  def _write(self, data: bytes) -> None:
    # Closed each time, because a mounted bucket uploads only then.
    with open(self._path, 'ab', buffering=0) as file:
      size = file.seek(0, os.SEEK_END)
      try:
        view = memoryview(data)
        while view:
          view = view[file.write(view) :]
      except OSError:
        file.truncate(size)  # A part of a line could not be read.
        raise
