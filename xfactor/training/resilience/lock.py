"""A lock that keeps a second training process out of a workdir.

WORKDIR/lock.json names the host, the process and the time of its last sign of
life, which a thread renews. The lock of a dead process on this host is taken at
once, that of one on another host if it shows no sign of life while we watch, so
that clocks do not matter.
"""

import contextlib
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from xfactor.data import files
from xfactor.errors import UserError
from xfactor.training.resilience import shutdown

_FILE = 'lock.json'
_BEAT = 10.0  # Seconds between signs of life.
_WATCH = 3 * _BEAT  # Seconds without one after which an owner counts as dead.
_POLL = 1.0
_TRIES = 60  # To take a lock that other processes take and release.


class Lock:
  """Holds the lock of a workdir until closed, if `active`.

  Args:
    workdir: Folder of the run; created if needed.
    active: Whether this process is the one that writes.

  Raises:
    UserError: If another process trains there.
  """

  def __init__(self, workdir: epath.PathLike, *, active: bool = True):
    self._path = epath.Path(workdir) / _FILE
    if not files.is_remote(workdir):
      self._path.parent.mkdir(parents=True, exist_ok=True)
    self._workdir = workdir
    self._active = active
    self._closed = threading.Event()
    if not active:
      return
    self._owner = {
      'host': socket.gethostname(),
      'process': os.getpid(),
      'started': _started(os.getpid()),
      'since': time.time(),
      'token': uuid.uuid4().hex,
    }
    self._take()
    self._thread = threading.Thread(target=self._renew, daemon=True)
    self._thread.start()

  def _take(self) -> None:
    for attempt in range(_TRIES):
      if attempt > 1:
        time.sleep(_POLL)
      with self._writing():
        if self._create():
          return
      other = _read(self._path)
      if other == {}:  # Just being written, or torn.
        time.sleep(_POLL)
        other = _read(self._path)
      if other and other.get('token') == self._owner['token']:
        return
      if other and self._lives(other):
        minutes = max(0, time.time() - other.get('since', time.time())) / 60
        raise UserError(
          f'{_name(other)} has been training in {self._workdir} for '
          f'{minutes:.0f} minutes: wait for it, stop it, or give another '
          '--workdir'
        )
      with self._writing():
        self._remove(other)
    raise UserError(
      f'{self._path} can neither be made nor read, as if processes were taking '
      'and releasing it all the time: check that none trains there and that '
      'the folder can be read, then remove the file'
    )

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      with files.as_os_errors(self._path):
        yield
    except OSError as e:
      if files.is_remote(self._path) and not files.is_refusal(e):
        raise  # A supervisor retries it.
      raise UserError(
        f'cannot write {self._path} ({e.strerror or e}); free some space or '
        'make it writable'
      ) from e

  def _remove(self, dead: dict[str, Any] | None) -> None:
    """Removes the lock of a dead owner, unless another one replaces it now.

    In a bucket, replaces it by this owner's.
    """
    if files.is_remote(self._path):
      _replace(self._path, dead, self._text())
      return
    aside = self._path.with_name(f'{_FILE}.{self._owner["token"]}')
    try:
      self._path.rename(aside)
    except FileNotFoundError:
      return
    if _read(aside) == dead or self._path.exists():
      aside.unlink()
    else:
      aside.rename(self._path)

  def _create(self) -> bool:
    """Creates the file with this owner; False if another one has done so."""
    if files.is_remote(self._path):
      return _replace(self._path, None, self._text())
    try:
      with open(self._path, 'x') as file:
        file.write(self._text())
    except FileExistsError:
      return False
    except OSError:
      self._path.unlink(missing_ok=True)  # Empty: the disk is full.
      raise
    return True

  def _text(self) -> str:
    return json.dumps(self._owner | {'time': time.time()})

  def _lives(self, other: dict[str, Any]) -> bool:
    if other.get('host') == self._owner['host']:
      return _started(other.get('process')) == other.get('started')
    print(
      f'{_name(other)} has trained in {self._workdir}; waiting for a sign '
      'of life',
      file=sys.stderr,
      flush=True,
    )
    deadline = time.monotonic() + _WATCH
    while time.monotonic() < deadline:
      time.sleep(_POLL)
      now = _read(self._path)
      if now != other:
        return now is not None
    return False

  def _renew(self) -> None:
    while not self._closed.wait(_BEAT):
      try:
        found = _read(self._path)
        if found and found.get('token') != self._owner['token']:
          # This process was suspended, and another one has taken over.
          print(
            f'error: {_name(found)} has taken over {self._workdir}',
            file=sys.stderr,
            flush=True,
          )
          shutdown.leave(2)
        with files.as_os_errors(self._path):
          files.write_json(self._path, self._owner | {'time': time.time()})
      except OSError:
        continue  # Such as a full disk: tried again at the next beat.

  def _is_ours(self) -> bool:
    found = _read(self._path)
    return bool(found) and found.get('token') == self._owner['token']

  def close(self) -> None:
    """Gives the lock back."""
    if not self._active:
      return
    self._closed.set()
    self._thread.join()
    if self._is_ours():
      self._path.unlink(missing_ok=True)


def holder(workdir: epath.PathLike) -> str:
  """Names the process that trains in a workdir; empty if none does."""
  found = _read(files.run_folder(workdir) / _FILE)
  if not found:
    return ''
  here = found.get('host') == socket.gethostname()
  if here and _started(found.get('process')) != found.get('started'):
    return ''
  return _name(found)


def _name(owner: dict[str, Any]) -> str:
  return f'process {owner.get("process")} on {owner.get("host")}'


def _read(path: epath.Path) -> dict[str, Any] | None:
  """Returns the owner; None if there is none, {} if it cannot be read."""
  try:
    with files.as_os_errors(path):
      return _parse(path.read_text())
  except FileNotFoundError:
    return None
  except OSError:
    return {}


def _parse(text: str) -> dict[str, Any]:
  try:
    found = json.loads(text)
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}


def _replace(path: epath.Path, old: dict[str, Any] | None, text: str) -> bool:
  """Writes a lock in a bucket if it holds `old` until then; returns whether."""
  from google.api_core import exceptions
  from google.cloud import storage

  bucket, _, name = str(path).removeprefix('gs://').partition('/')
  file = storage.Client().bucket(bucket).blob(name)
  try:
    generation = 0
    if old is not None:
      file.reload()
      generation = file.generation
      found = file.download_as_text(if_generation_match=generation)
      if _parse(found) != old:
        return False
    file.upload_from_string(text, if_generation_match=generation)
  except (exceptions.NotFound, exceptions.PreconditionFailed):
    return False
  return True


def _started(process: int | None) -> str:
  """Identifies a living process beyond its number; empty if it is dead."""
  try:
    stat = pathlib.Path(f'/proc/{process}/stat').read_text()
    fields = stat.rpartition(')')[2].split()
    return '' if fields[0] in 'ZX' else fields[19]
  except OSError:
    pass
  try:  # A system without /proc.
    os.kill(int(process), 0)
  except (OSError, TypeError):
    return ''
  return 'alive'
