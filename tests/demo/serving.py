"""The page, served as its users serve it."""

import contextlib
import pathlib
import socket
import time

from tests import commands

PATIENCE = 60  # Seconds: far more than anything takes.


def wait(check):
  """What `check` gives when it gives something."""
  deadline = time.monotonic() + PATIENCE
  while not (found := check()):
    assert time.monotonic() < deadline
    time.sleep(0.1)
  return found


@contextlib.contextmanager
def serve(folder: pathlib.Path, *flags):
  """Serves it, its files in the folder: yields its address and its process."""
  out, err = folder / 'out', folder / 'err'
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  process = commands.start(
    *('-m', 'xfactor.demo', *flags, f'--port={port}'),
    stdout=str(out),
    stderr=str(err),
    TMPDIR=str(folder),
  )

  def address():
    assert process.is_alive(), err.read_text()
    words = out.read_text().split() if out.exists() else []
    return [word for word in words if word.startswith('http')]

  try:
    yield wait(address)[0], process
  finally:
    process.kill()
