"""Times of frames increase, whatever the container says."""

import numpy as np
import pytest

from xfactor.data.formats import clock

COUNT, PERIOD = 40, 1.0


def repaired(times):
  """Returns the repaired times and the numbers of the repaired frames."""
  out = list(clock.repair(((t, i) for i, t in enumerate(times)), PERIOD))
  assert [tick.frame for tick in out] == list(range(len(times)))
  return (
    [tick.time for tick in out],
    [tick.frame for tick in out if tick.repaired],
  )


def base():
  return [float(i) for i in range(COUNT)]


def test_good_times_are_kept():
  times = np.cumsum(np.random.default_rng(0).uniform(0.1, 30, COUNT)) - 99
  assert repaired(times.tolist()) == (times.tolist(), [])


def test_repeated_and_swapped_times():
  times = base()
  times[10] = times[9]
  times[20] = times[21] = times[19]
  times[15], times[16] = times[16], times[15]
  assert repaired(times) == (base(), [10, 15, 16, 20, 21])


def test_a_single_time_that_is_far_off():
  times = base()
  times[20] = 0.0
  assert repaired(times) == (base(), [20])


@pytest.mark.parametrize('back', [4, 12, 100])
def test_a_clock_that_is_set_back(back):
  times = [t if t < 20 else t - back for t in base()]
  got, which = repaired(times)
  assert got == base()
  assert which == list(range(20, 20 + min(back + 1, 8)))


@pytest.mark.parametrize('time', [None, 0.0])
@pytest.mark.parametrize('count', [3, COUNT])
def test_no_clock_at_all(count, time):
  got, which = repaired([time] * count)
  assert got == [float(i) for i in range(count)]
  assert which == list(range(time is not None, count))


def test_missing_times_before_known_ones():
  got, which = repaired([None, None, 5.0, 6.0])
  assert (got, which) == ([3.0, 4.0, 5.0, 6.0], [0, 1])


def test_times_in_the_order_of_packets():
  # What files that store B-frames without their own times have.
  times = [0.0]
  for i in range(0, 36, 3):
    times += [i + 3.0, i + 1.0, i + 2.0]
  got, which = repaired(times)
  assert got == [float(i) for i in range(37)]
  assert which == list(range(1, 37))


def test_failed_frames_keep_their_place():
  frames = [(0.0, 'a'), (None, None), (2.0, 'b'), (3.0, None), (2.0, 'c')]
  out = list(clock.repair([*frames, (5.0, 'd')], PERIOD))
  assert [tick.frame for tick in out] == ['a', None, 'b', None, 'c', 'd']
  assert [tick.time for tick in out] == [0, None, 2, 3, 3.5, 5]
  # Without times, the place of a failed frame stays free.
  out = list(clock.repair([(None, 'a'), (None, None), (None, 'b')], PERIOD))
  assert [tick.time for tick in out] == [0, None, 2]


@pytest.mark.parametrize('seed', range(20))
def test_times_increase_whatever_they_are(seed):
  rng = np.random.default_rng(seed)
  times = base()
  for _ in range(rng.integers(1, 15)):
    at = rng.integers(COUNT)
    times[at] = rng.choice([None, times[at - 1], 0.0, 5.5, 30.0])
  got, _ = repaired(times)
  assert np.diff(got).min() > 0
