"""Standard output and error, which never stop a command, and progress bars."""

import contextlib
import os
import sys
from typing import Any, TextIO

import tqdm


class _Surviving:
  """A stream whose failed writes are ignored; otherwise as the one inside."""

  def __init__(self, stream: TextIO):
    self._stream = stream

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """Writes text; drops it if that fails."""
    try:
      return self._stream.write(text)
    except OSError as e:
      self._give_up(e)
      return len(text)

  def flush(self) -> None:
    """Writes what is buffered, as far as that is possible."""
    try:
      self._stream.flush()
    except OSError as e:
      self._give_up(e)

  def _give_up(self, error: OSError) -> None:
    # A full disk may have room later; a reader that has left does not return.
    if isinstance(error, BrokenPipeError):
      with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)


class _Lines:
  """The stream of a progress bar without a terminal: only whole lines."""

  def __init__(self, stream: TextIO):
    self._stream = stream
    self._last = ''

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """Writes the text as a line, without what moves the cursor."""
    line = text.replace('\x1b[A', '').strip()
    if line and line != self._last:
      self._stream.write(line + '\n')
      self._last = line
    return len(text)


def survive() -> None:
  """Makes closed or broken standard streams harmless to this process."""
  for fd in range(3):  # Otherwise the next file that is opened gets the number.
    try:
      os.fstat(fd)
    except OSError:
      os.open(os.devnull, os.O_RDWR)
  for name in ('stdout', 'stderr'):
    stream = getattr(sys, name)
    if isinstance(stream, _Surviving):
      continue
    if stream is None:
      stream = open(os.devnull, 'w')  # noqa: SIM115
    setattr(sys, name, _Surviving(stream))


def progress(**options: Any) -> tqdm.tqdm:
  """Returns a progress bar; without a terminal it prints whole lines.

  Args:
    **options: Arguments of `tqdm.tqdm`.
  """
  terminal = sys.stderr.isatty()
  return tqdm.tqdm(
    file=sys.stderr if terminal else _Lines(sys.stderr),
    mininterval=0.5 if terminal else 30,  # Keeps log files short.
    **options,
  )
