"""Appends to log files; a failed write never stops or holds up a run."""

import os
import sys
import threading

from etils import epath

from xfactor.data import files

_MOST = 2**22  # Bytes that wait for room on the disk; older ones are dropped.
_EVERY = 60.0  # Seconds between uploads to a bucket, at most.
_LAST = 20.0  # Seconds that the last upload may take.


def appender(path: epath.PathLike) -> 'Appender | Uploader':
  """Returns what appends to a file, in a folder or in a bucket.

  Raises:
    OSError: If a file in a bucket cannot be read.
  """
  return (Uploader if files.is_remote(path) else Appender)(path)


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

  def read(self) -> bytes:
    """Returns the content of the file."""
    return self._path.read_bytes() if self._path.exists() else b''

  def flush(self) -> None:
    """Tries to write what is waiting."""
    self.append(b'')

  close = flush

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


class Uploader:
  """Appends bytes to a file in a bucket, where files can only be replaced.

  A thread uploads the file, at least once a minute; the first failure is
  reported on stderr.
  """

  def __init__(self, path: epath.PathLike):
    self._path = epath.Path(path)
    self._data = bytearray()
    with files.as_os_errors(path):
      if self._path.exists():
        self._data += self._path.read_bytes()
    self._uploaded = len(self._data)
    self._failed = False
    self._closed = False
    self._wake = threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def append(self, data: bytes) -> None:
    """Appends bytes, which the next upload includes."""
    self._data += data

  def read(self) -> bytes:
    """Returns the content of the file, uploaded or not."""
    return bytes(self._data)

  def flush(self) -> None:
    """Starts an upload, and does not wait for it."""
    self._wake.set()

  def end_line(self) -> None:
    """Ends the last line, if a killed run left it unfinished."""
    if self._data and not self._data.endswith(b'\n'):
      self.append(b'\n')

  def close(self) -> None:
    """Uploads the rest, unless the bucket does not respond."""
    self._closed = True
    self._wake.set()
    self._thread.join(_LAST)

  def _run(self) -> None:
    while not self._closed:
      self._wake.wait(_EVERY)
      self._wake.clear()
      self._upload()
    self._upload()  # What was appended during the last one.

  def _upload(self) -> None:
    data = self.read()
    if len(data) == self._uploaded:
      return
    try:
      with files.as_os_errors(self._path):
        self._path.write_bytes(data)
    except OSError as e:
      if not self._failed:
        print(
          f'cannot upload {self._path} ({e.strerror or e}); trying again every '
          'minute',
          file=sys.stderr,
          flush=True,
        )
      self._failed = True
      return
    self._uploaded = len(data)
    if self._failed:
      print(f'{self._path} is uploaded again', file=sys.stderr, flush=True)
    self._failed = False
