"""Handles SIGTERM, SIGHUP and Ctrl-C without losing work.

A thread receives the signals, because Python's handlers are blocked while XLA
compiles. If one of several processes receives a signal, it notifies the others
through JAX's coordination service. The step after which all of them stop is
agreed through the train step; see `training.control`.
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

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_KEY = 'xfactor/interrupted'
_POLL = 2.0  # Seconds between checks for a stop request of another process.
_GRACE = 5.0  # Seconds for the main thread to exit by itself.


class Interrupted(BaseException):
  """A stop was requested and all is on disk; the process exits with code 42.

  Like KeyboardInterrupt not an Exception, so that libraries do not catch it.
  """


class Interruption:
  """State of stop requests; created by `handling`.

  Attributes:
    requested: Whether this or another process was asked to stop.
    deferring: Whether requests are only noted now.
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
    """Only notes a request inside; raises Interrupted on exit."""
    with self._mode(deferring=True):
      yield
    self._raise_if_requested()

  @contextlib.contextmanager
  def at_once(self) -> Iterator[None]:
    """Raises Interrupted on a request inside, even if deferred outside."""
    with self._mode(deferring=False):
      self._raise_if_requested()
      with self.translating():
        yield

  @contextlib.contextmanager
  def translating(self) -> Iterator[None]:
    """Turns errors caused by stopped peer processes into Interrupted."""
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
    # Only once, so that the cleanup is not interrupted.
    if self.requested and not self._raised:
      self._raised = True
      raise Interrupted

  def handle(self, signum, frame) -> None:
    """Handles a signal in Python, as soon as the main thread is free."""
    del signum, frame
    self.requested = True
    if not self.deferring:
      self._raise_if_requested()

  def watch(self, wake: int, closed: threading.Event) -> None:
    """Waits until closed for signals, which Python writes to `wake`."""
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
      print('stop requested; Ctrl-C stops at once', file=sys.stderr, flush=True)

  def _set_deadline(self) -> None:
    # Process 0 hosts the coordination service: its exit ends the others.
    last = self._client is not None and distributed.global_state.process_id == 0
    grace = _GRACE + (2 * _POLL if last else 0)
    self._deadline = time.monotonic() + grace

  def _announce(self) -> None:
    if self._client is not None and not self._announced:
      self._announced = True
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        self._client.key_value_set(_KEY, '1', allow_overwrite=True)

  def _hears(self) -> bool:
    """Returns whether another process has announced a stop request."""
    if self._client is None:
      return False
    try:
      return bool(self._client.key_value_try_get(_KEY))
    except jax.errors.JaxRuntimeError:  # No key, or process 0 has exited.
      return False


@contextlib.contextmanager
def handling() -> Iterator[Interruption]:
  """Raises Interrupted on SIGTERM and Ctrl-C inside, unless deferred.

  SIGHUP counts as SIGTERM unless it is ignored (nohup). If the main thread is
  blocked (it compiles, or waits for a process that has exited), the process
  exits with code 42 a few seconds later. A second Ctrl-C ends it at once. Enter
  it in the main thread and after jax.distributed.initialize, whose signal
  handler it replaces.
  """
  interruption = Interruption()
  wake, write = os.pipe()
  os.set_blocking(write, False)
  previous_fd = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  previous = {
    s: signal.signal(s, interruption.handle)
    for s in _SIGNALS
    if signal.getsignal(s) != signal.SIG_IGN
  }
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
      # None: the handler of JAX, which is no longer needed.
      signal.signal(signum, signal.SIG_DFL if handler is None else handler)
    signal.set_wakeup_fd(previous_fd)
    closed.set()
    os.write(write, bytes(1))  # Wakes the thread.
    thread.join()
    os.close(write)
    os.close(wake)


def leave_when_told() -> None:
  """Leaves with code 42 on SIGTERM and SIGHUP, where nothing can be lost."""
  for signum in (signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(signum) == signal.SIG_DFL:
      signal.signal(signum, lambda *_: leave(EXIT_CODE))


def leave_cluster() -> None:
  """Signs off from the other processes of the run, if there are any."""
  if distributed.global_state.client is not None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      jax.distributed.shutdown()


def leave(code: int) -> None:
  """Ends the process and its workers, whatever its threads are doing."""
  for child in multiprocessing.active_children():
    child.kill()
  for stream in sys.stdout, sys.stderr:
    with contextlib.suppress(OSError, ValueError, AttributeError):
      stream.flush()
  os._exit(code)
