"""Claims, with which hosts that share a folder avoid doing work twice.

A claim is a small file, renewed while its owner lives. Claims only save time:
on network disks and buckets, two hosts can take one at the same moment. So the
files that they guard must appear atomically and not depend on their writer.
"""

import contextlib
import os
import socket
import threading
import time
from typing import Any

from etils import epath

from xfactor.data import files

_RENEW = 30.0  # Seconds.
# Without renewal for this long, the owner is dead; clocks of hosts may differ.
_STALE = 300.0
# Time for simultaneous claims of other hosts to become visible.
_SETTLE = 1.0


class Claims:
  """Claims of this process in a folder; renewed until closed."""

  def __init__(self, folder: epath.Path):
    self._folder = folder
    self._held: set[str] = set()
    self._lock = threading.Lock()
    self._end = threading.Event()
    self._thread = threading.Thread(target=self._renew, daemon=True)
    self._thread.start()

  def take(self, name: str) -> bool:
    """Claims `name`; returns whether this process holds it now."""
    path = self._path(name)
    # Check this before the owner: another claim may appear in between.
    found = path.exists()
    if is_taken(path):
      return False
    if files.is_remote(path):
      self._write(path)
      time.sleep(_SETTLE)
    else:
      if found:
        path.unlink(missing_ok=True)
      self._create(path)
    if not _is_mine(_read(path)):
      return False
    with self._lock:
      self._held.add(name)
    return True

  def release(self, name: str) -> None:
    """Releases `name`."""
    with self._lock:
      self._held.discard(name)
    with contextlib.suppress(OSError):
      self._path(name).unlink()

  def close(self) -> None:
    """Releases all claims."""
    self._end.set()
    self._thread.join()
    for name in list(self._held):
      self.release(name)

  def _renew(self) -> None:
    while not self._end.wait(_RENEW):
      with self._lock:
        for name in self._held:
          # Buckets have temporary failures with errors of their own.
          with contextlib.suppress(Exception):
            self._write(self._path(name))

  def _path(self, name: str) -> epath.Path:
    return self._folder / f'{name}.claim'

  def _write(self, path: epath.Path) -> None:
    files.write_json(
      path,
      {'host': socket.gethostname(), 'pid': os.getpid(), 'time': time.time()},
    )

  def _create(self, path: epath.Path) -> None:
    """Writes a claim on a disk, atomically, unless there is one."""
    mine = path.with_name(f'{path.name}.new{files.partial_suffix()}')
    self._write(mine)
    try:
      os.link(mine, path)
    except FileExistsError:
      pass
    except OSError:  # Some disks do not support links.
      self._write(path)
    mine.unlink(missing_ok=True)


def is_taken(claim: epath.Path) -> bool:
  """Returns whether another process, apparently alive, holds a claim."""
  owner = _read(claim)
  if owner is None or _is_mine(owner):
    return False
  if owner['host'] == socket.gethostname() and not is_alive(owner['pid']):
    return False
  return abs(time.time() - owner['time']) < _STALE


def _read(claim: epath.Path) -> dict[str, Any] | None:
  try:
    return files.read_json(claim)
  except (OSError, ValueError):
    return None


def _is_mine(owner: dict[str, Any] | None) -> bool:
  return (
    owner is not None
    and owner['host'] == socket.gethostname()
    and owner['pid'] == os.getpid()
  )


def is_alive(pid: int) -> bool:
  """Returns whether a process with this id runs on this host."""
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:  # Another user's process.
    pass
  return True
