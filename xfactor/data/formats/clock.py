"""Repairs the times of a video's frames.

Decoders return frames in the order in which they are shown, but containers may
hold times that repeat, run backwards or are missing.
"""

import collections
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

  Frames without a later time than the frame before are spread evenly up to the
  next frame that has one. If there is none for `_WAIT` frames, or the clock
  went back and did not return, it was set back: from there on the container's
  times are shifted so that they continue.

  Args:
    frames: Times in seconds, None if unknown, and frames in the order in which
      they are shown; a frame is None if it failed to decode.
    period: Usual seconds between two frames.

  Yields:
    All of them, in the same order.
  """
  last: float | None = None
  shift = 0.0
  waiting: collections.deque[tuple[float | None, T | None]] = (
    collections.deque()
  )

  def flush(begin: float, step: float) -> Iterator[Tick[T]]:
    """Yields those that wait, with one `step` for each."""
    number = 0
    while waiting:
      time, frame = waiting.popleft()
      if frame is None and time is not None:
        # Frames around it say where it belongs.
        yield Tick(time + shift, None)
        continue
      number += 1
      yield Tick(
        None if frame is None else begin + number * step,
        frame,
        repaired=frame is not None,
      )

  for time, frame in frames:
    if frame is None and not waiting:
      known = time is not None
      if known or last is None:
        yield Tick(time + shift if known else None, None)
        continue
    later = (
      frame is not None
      and time is not None
      and (last is None or time + shift > last)
    )
    slots = sum(f is not None or t is None for t, f in waiting)
    if later and not _went_back(waiting, shift, last, time + shift, period):
      now = time + shift
      if slots and last is None:
        yield from flush(now - (slots + 1) * period, period)
      elif waiting:
        yield from flush(last, (now - last) / (slots + 1))
      last = now
      # Shifted times are not counted: their intervals are the container's.
      yield Tick(now, frame)
      continue
    waiting.append((time, frame))
    slots += frame is not None or time is None
    if later or (frame is not None and slots >= _WAIT):
      last = -period if last is None else last
      end = last + slots * period
      if frame is not None and time is not None:
        yield from flush(last, period)
        shift = end - time
      else:
        yield from flush(last, period)
      last = end
  if waiting:
    yield from flush(-period if last is None else last, period)


def _went_back(
  waiting: Iterable[tuple[float | None, object]],
  shift: float,
  last: float | None,
  now: float,
  period: float,
) -> bool:
  """Returns whether the clock was set back, and only now passes `last`."""
  times = [t + shift for t, f in waiting if f is not None and t is not None]
  if last is None or not times or last - min(times) < 1.5 * period:
    return False
  return now - last < 0.5 * (len(times) + 1) * period
