"""Converts parts in worker processes, with a progress bar."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

from absl import logging

from xfactor import streams
from xfactor.data import processes, sources
from xfactor.data.convert import claims as claims_lib
from xfactor.data.convert import part as part_lib
from xfactor.data.convert import plan as plan_lib

POLL = 0.5  # Seconds between checks of the work of other hosts.


def _run_parts(
  source: sources.Source,
  plan: plan_lib.Plan,
  workers: int,
  progress: part_lib.Progress,
  claims: claims_lib.Claims,
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (number, summary) of parts as they are done, here or elsewhere.

  Stops early if another process has finished all of them.
  """
  waiting = list(range(len(plan.parts)))
  # Parts of earlier runs; new ones need no verification.
  before = {path.name for path in plan.work.glob('part-*.json')}
  if before:
    logging.info(
      'Continuing: %d of %d parts are done.', len(before), len(waiting)
    )
  running: dict[futures.Future, int] = {}
  told = False
  job = (source, part_lib.without_items(plan), progress)
  workers = min(workers, len(waiting))
  with processes.pool(workers, part_lib.set_job, job) as pool:
    try:
      while waiting or running:
        if not _is_open(plan):
          return
        others = []
        for number in waiting:
          # One more than workers, so that no worker waits for this loop.
          if len(running) <= workers and claims.take(
            part_lib.part_stem(number)
          ):
            check = f'{part_lib.part_stem(number)}.json' in before
            future = pool.submit(
              part_lib.work_on, number, plan.parts[number], check
            )
            running[future] = number
          else:
            others.append(number)
        waiting = others
        if not running:
          if not told:
            logging.info(
              'Waiting for %d parts that other processes convert.',
              len(waiting),
            )
            told = True
          time.sleep(POLL)
        done, _ = futures.wait(running, POLL, futures.FIRST_COMPLETED)
        for future in done:
          number = running.pop(future)
          yield number, future.result()
          claims.release(part_lib.part_stem(number))
    finally:
      progress.stop.value = 1


def _is_open(plan: plan_lib.Plan) -> bool:
  """Returns whether no other process has finished all parts."""
  all_done = (plan.work / 'parts.json').exists()
  return not all_done and (plan.work / 'options.json').exists()


class _Bar:
  """Progress bar with items done, frames per second and time left."""

  def __init__(
    self, plan: plan_lib.Plan, progress: part_lib.Progress, quiet: bool
  ):
    self._progress = progress
    self._bar = streams.progress(
      total=sum(map(len, plan.parts)),
      desc=plan.name,
      unit='item',
      disable=quiet,
      smoothing=0.1,
    )
    self._start = time.monotonic()

  def update(self) -> None:
    frames = sum(self._progress.frames)
    rate = frames / max(time.monotonic() - self._start, 1e-6)
    self._bar.set_postfix_str(
      f'{frames} frames, {rate:.0f} frames/s', refresh=False
    )
    self._bar.update(sum(self._progress.items) - self._bar.n)
    if sys.stderr.isatty():
      self._bar.refresh()

  def close(self) -> None:
    self.update()
    self._bar.close()


def _ticking(bar: _Bar) -> Callable[[], None]:
  """Updates the bar during in-process work; returns a function to stop."""
  stop = threading.Event()

  def tick() -> None:
    # Keeps log files short.
    while not stop.wait(0.5 if sys.stderr.isatty() else 30):
      bar.update()

  thread = threading.Thread(target=tick, daemon=True)
  thread.start()

  def end() -> None:
    stop.set()
    thread.join()
    bar.close()

  return end


def convert_parts(
  source: sources.Source,
  plan: plan_lib.Plan,
  workers: int,
  progress: part_lib.Progress,
  claims: claims_lib.Claims,
  quiet: bool,
) -> list[dict[str, Any]]:
  """Converts all parts and returns their summaries; see `_run_parts`."""
  parts = {}
  end = _ticking(_Bar(plan, progress, quiet))
  try:
    with contextlib.closing(
      _run_parts(source, plan, workers, progress, claims)
    ) as finished:
      for number, part in finished:
        parts[number] = part
  finally:
    end()
  return [part for _, part in sorted(parts.items())]
