"""SIGTERM and Ctrl-C: noticed at once, answered where nothing is lost.

A thread notices them, because Python's own handlers wait while XLA compiles.
Where one process of several is told to stop, the others hear of it through
JAX's coordination service. Where they stop together is not decided here: a
train step carries the request and all see it after the same step (`requests`).
"""

import contextlib
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator

import jax
from jax._src import distributed

EXIT_CODE = 42

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_KEY = 'xfactor/interrupted'
_POLL = 2.0  # Seconds between looks whether another process was told to stop.
_GRACE = 5.0  # Seconds in which the main thread may leave by itself.


class Interrupted(BaseException):
  """Told to stop, and all is on disk; the process is to exit with code 42.

  Like KeyboardInterrupt no Exception, so that no library swallows it.
  """


class Interruption:
  """Whether the run was told to stop; made by `handling`.

  Attributes:
    requested: Whether this or another process was.
    deferring: Whether that is only noted now.
  """

  def __init__(self):
    self.requested = False
    self.deferring = False
    self._client = distributed.global_state.client
    self._deadline = 0.0
    self._noticed = False
    self._announced = False
    self._raised = False

  @contextlib.contextmanager
  def deferred(self) -> Iterator[None]:
    """Inside, a request is only noted; leaving it then raises Interrupted."""
    with self._mode(deferring=True):
      yield
    self._raise_if_requested()

  @contextlib.contextmanager
  def at_once(self) -> Iterator[None]:
    """Inside, a request raises Interrupted even if deferred outside."""
    with self._mode(deferring=False):
      self._raise_if_requested()
      with self.translating():
        yield

  @contextlib.contextmanager
  def translating(self) -> Iterator[None]:
    """Where others leave, those who wait for them get errors: Interrupted."""
    try:
      yield
    except Exception as e:
      if not self.deferring and (self.requested or self._hears()):
        raise Interrupted from e
      raise

  @contextlib.contextmanager
  def _mode(self, *, deferring: bool) -> Iterator[None]:
    before = self.deferring
    self._set_deadline()
    self.deferring = deferring
    try:
      yield
    finally:
      self._set_deadline()
      self.deferring = before

  def _raise_if_requested(self) -> None:
    # Once: what is cleaned up on the way out is not to be interrupted, too.
    if self.requested and not self._raised:
      self._raised = True
      raise Interrupted

  def handle(self, signum, frame) -> None:
    """Python's signal handler; runs as soon as the main thread can."""
    del signum, frame
    self.requested = True
    if not self.deferring:
      self._raise_if_requested()

  def watch(self, wake: int, closed: threading.Event) -> None:
    """Waits for signals, written to `wake` as they come, until closed."""
    while not closed.is_set():
      if select.select([wake], [], [], _POLL)[0]:
        self._notice(os.read(wake, 64))
      elif not self.requested and self._hears():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
      if self.requested:
        self._announce()
        if not self.deferring and time.monotonic() > self._deadline:
          leave(EXIT_CODE)

  def _notice(self, signals: bytes) -> None:
    if signals.count(signal.SIGINT) > (0 if self._noticed else 1):
      leave(128 + signal.SIGINT)
    if not self._noticed and set(signals) & set(_SIGNALS):
      self.requested = self._noticed = True
      self._set_deadline()
      print('told to stop; Ctrl-C stops at once', file=sys.stderr, flush=True)

  def _set_deadline(self) -> None:
    # Process 0 serves the others, and ends them when it ends.
    last = self._client is not None and distributed.global_state.process_id == 0
    grace = _GRACE + (2 * _POLL if last else 0)
    self._deadline = time.monotonic() + grace

  def _announce(self) -> None:
    if self._client is not None and not self._announced:
      self._announced = True
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        self._client.key_value_set(_KEY, '1', allow_overwrite=True)

  def _hears(self) -> bool:
    """Whether another process has said that it was told to stop."""
    if self._client is None:
      return False
    try:
      return bool(self._client.key_value_try_get(_KEY))
    except jax.errors.JaxRuntimeError:  # Not there, or process 0 has left.
      return False


@contextlib.contextmanager
def handling() -> Iterator[Interruption]:
  """SIGTERM and Ctrl-C raise Interrupted inside, unless deferred.

  If the main thread is stuck (it compiles, or waits for a process that has
  left), the whole process ends with code 42 a few seconds later; a second
  Ctrl-C ends it at once. To be entered in the main thread, and after
  jax.distributed.initialize, whose own handler it replaces.
  """
  interruption = Interruption()
  wake, write = os.pipe()
  os.set_blocking(write, False)
  previous_fd = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  previous = {s: signal.signal(s, interruption.handle) for s in _SIGNALS}
  closed = threading.Event()
  thread = threading.Thread(
    target=interruption.watch, args=(wake, closed), daemon=True
  )
  thread.start()
  try:
    with interruption.translating():
      yield interruption
  finally:
    for signum, handler in previous.items():
      # None: JAX's, which is of no more use.
      signal.signal(signum, signal.SIG_DFL if handler is None else handler)
    signal.set_wakeup_fd(previous_fd)
    closed.set()
    os.write(write, bytes(1))  # Wakes it.
    thread.join()
    os.close(write)
    os.close(wake)


def leave(code: int) -> None:
  """Ends the process and its workers wherever its threads are."""
  for child in multiprocessing.active_children():
    child.kill()
  with contextlib.suppress(OSError, ValueError):
    sys.stdout.flush()
  os._exit(code)
