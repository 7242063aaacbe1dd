"""Worker processes that exit together with their main process."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import process
from multiprocessing import connection
from typing import Any

from xfactor.errors import UserError


@contextlib.contextmanager
def pool(
  workers: int,
  initializer: Callable[..., None] | None = None,
  initargs: tuple[Any, ...] = (),
) -> Iterator[futures.Executor]:
  """Yields an executor; at the end, tasks not yet started are cancelled.

  Args:
    workers: Number of processes; 0 runs tasks immediately in this one.
    initializer: Function that each process calls first.
    initargs: Arguments of `initializer`; picklable.

  Raises:
    UserError: If a process was killed.
  """
  if workers == 0:
    if initializer:
      initializer(*initargs)
    yield _Here()
    return
  executor = _Pool(
    workers,
    mp_context=multiprocessing.get_context('spawn'),
    initializer=_start,
    initargs=(initializer, initargs),
  )
  try:
    yield executor
  except process.BrokenProcessPool as e:
    raise UserError(
      'a worker process was killed, most likely because memory ran out; give '
      'fewer --workers and run the same command again'
    ) from e
  finally:
    executor.shutdown(cancel_futures=True)


class _Here(futures.Executor):
  """Runs tasks immediately in this process."""

  def submit(
    self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
  ) -> futures.Future:
    future = futures.Future()
    future.set_result(fn(*args, **kwargs))
    return future

  map = staticmethod(map)


class _Pool(futures.ProcessPoolExecutor):
  """Process pool whose workers ignore Ctrl-C.

  Ctrl-C signals the whole process group; only the main process handles it.
  """

  def submit(
    self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
  ) -> futures.Future:
    # New processes inherit the mask, so they ignore it from their start.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
      return super().submit(fn, *args, **kwargs)
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start(
  initializer: Callable[..., None] | None, initargs: tuple[Any, ...]
) -> None:
  def watch() -> None:
    # A worker must not outlive a killed main process: the next run would write
    # the same files.
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
  if initializer:
    initializer(*initargs)
