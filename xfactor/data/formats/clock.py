"""Repairs the times of a video's frames.

Decoders return frames in the order in which they are shown, but containers may
hold times that repeat, run backwards or are missing.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

T = TypeVar('T')
_WAIT = 8  # Frames after which times that lag behind count as a restart.


class Tick(NamedTuple, Generic[T]):
  """A frame with its time.

  Attributes:
    time: Seconds; larger than those of all frames before. For a frame that
      failed to decode, the container's time, or None.
    frame: Frame, or None if it failed to decode.
    repaired: Whether the time is not the container's.
  """

  time: float | None
  frame: T | None
  repaired: bool = False


def repair(
  frames: Iterable[tuple[float | None, T | None]], period: float
) -> Iterator[Tick[T]]:
  """Keeps the order of frames and makes their times increase.

  Times of neighbours in a wrong order are exchanged. Other frames without a
  later time than the frame before are spread evenly up to the next frame that
  has one. If there is none for `_WAIT` frames, or the clock went back and did
  not return, it was set back: from there on the container's times are shifted
  so that they continue.

  Args:
    frames: Times in seconds, None if unknown, and frames in the order in which
      they are shown; a frame is None if it failed to decode.
    period: Usual seconds between two frames.

  Yields:
    All of them, in the same order.
  """
  shift = 0.0
  floor = last = -math.inf  # Times of the frames before `held` and of `held`.
  held: list[Tick[T]] = []  # A frame whose time is good so far, if any.
  waiting: list[Tick[T]] = []  # Those after it that have no later time.
  for time, frame in frames:
    tick = Tick(None if time is None else time + shift, frame)
    later = frame is not None and time is not None and tick.time > last
    swapped = _in_order(held + waiting, floor)
    if later and (swapped or not _went_back(waiting, last, tick.time, period)):
      step = (tick.time - last) / (_slots(waiting) + 1)
      if last == -math.inf:
        step, last = period, tick.time - (_slots(waiting) + 1) * period
      done = swapped or held + _spread(waiting, last, step)
      yield from done
      done = [t.time for t in done if t.frame is not None]
      floor = max(done, default=floor)
      held, waiting, last = [tick], [], tick.time
      continue
    waiting.append(tick)
    slots = _slots(waiting)
    if later or (frame is not None and slots >= _WAIT):
      begin = -period if last == -math.inf else last
      yield from held + _spread(waiting, begin, period)
      floor = last = begin + slots * period
      shift += 0 if tick.time is None else last - tick.time
      held, waiting = [], []
  begin = -period if last == -math.inf else last
  yield from (
    _in_order(held + waiting, floor) or held + _spread(waiting, begin, period)
  )


def _slots(waiting: list[Tick[T]]) -> int:
  """Returns how many times are needed; some failed frames have their own."""
  return sum(t.frame is not None or t.time is None for t in waiting)


def _spread(waiting: list[Tick[T]], begin: float, step: float) -> list[Tick[T]]:
  """Gives each frame a time, one `step` after the one before."""
  out, number = [], 0
  for tick in waiting:
    number += tick.frame is not None or tick.time is None
    if tick.frame is not None:
      tick = Tick(begin + number * step, tick.frame, repaired=True)
    out.append(tick)
  return out


def _in_order(ticks: list[Tick[T]], floor: float) -> list[Tick[T]]:
  """Sorts times that are only in a wrong order; [] if they are not."""
  times = [tick.time for tick in ticks if tick.frame is not None]
  if None in times or len(set(times)) < len(times):
    return []
  if not times or min(times) <= floor:
    return []
  ordered = iter(sorted(times))
  out = []
  for tick in ticks:
    if tick.frame is not None:
      time = next(ordered)
      tick = Tick(time, tick.frame, repaired=time != tick.time)
    out.append(tick)
  return out


def _went_back(
  waiting: list[Tick[T]], last: float, now: float, period: float
) -> bool:
  """Returns whether the clock was set back, and only now passes `last`."""
  times = [
    t.time for t in waiting if t.frame is not None and t.time is not None
  ]
  if not times or last - min(times) < 1.5 * period:
    return False
  return now - last < 0.5 * (len(times) + 1) * period
