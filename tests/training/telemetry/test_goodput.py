"""Every second is in one bucket, over restarts, kills and torn lines."""

import itertools
import json
import random
from unittest import mock

import pytest

from xfactor.errors import UserError
from xfactor.training.telemetry import goodput


class Clock:
  """Time that passes when told to."""

  def __init__(self):
    self.now = 1000.0

  def __call__(self):
    return self.now

  def sleep(self, seconds):
    self.now += seconds


@pytest.fixture
def clock():
  clock = Clock()
  with mock.patch.multiple(goodput.time, time=clock, monotonic=clock):
    yield clock


def work(clock, record, first, last, every=2):
  """Steps of 2 s after waits of 1 s, flushed every so many."""
  for done in range(first + 1, last + 1):
    with record.measure('data_wait'):
      clock.sleep(1)
    clock.sleep(2)
    record.add('step', 2.0, step=done)
    if done % every == 0:
      record.flush()


def summary(workdir):
  return goodput.summarize(goodput.read(workdir))


def seconds(**buckets):
  return dict.fromkeys(goodput.BUCKETS, 0.0) | buckets


def test_one_incarnation(tmp_path, clock):
  record = goodput.Goodput(tmp_path / 'run')
  for kind, time in (('init', 7), ('compile', 20)):
    with record.measure(kind):
      clock.sleep(time)
  work(clock, record, 0, 5)
  with record.measure('checkpoint'):
    clock.sleep(0.5)
  with record.measure('evaluation'):
    clock.sleep(4)
  clock.sleep(3)
  record.close()
  assert summary(tmp_path / 'run') == goodput.Summary(
    seconds(
      init=7.0,
      compile=20.0,
      data_wait=5.0,
      step=10.0,
      checkpoint=0.5,
      evaluation=4.0,
      other=3.0,
    ),
    incarnations=1,
    steps=5,
    lost_steps=0,
  )
  assert summary(tmp_path / 'run').wall == 49.5
  assert summary(tmp_path / 'run').goodput == pytest.approx(10 / 49.5)


def test_a_killed_run_loses_what_is_done_again(tmp_path, clock):
  first = goodput.Goodput(tmp_path)
  work(clock, first, 0, 9)  # The ninth is never flushed: killed.
  clock.sleep(100)
  second = goodput.Goodput(tmp_path)
  work(clock, second, 5, 7)
  clock.sleep(50)
  third = goodput.Goodput(tmp_path)
  work(clock, third, 6, 10)
  third.close()
  result = summary(tmp_path)
  # (4, 6] of the first lost one of two, (6, 8] both; (5, 7] was flushed as 5
  # to 6 and, at its end, not at all.
  assert result.incarnations == 3
  assert result.lost_steps == 3
  assert result.steps == 10
  assert result.seconds['lost'] == 6.0
  assert result.seconds['step'] == 20.0
  assert result.seconds['data_wait'] == 8 + 1 + 4
  assert result.seconds['downtime'] == 3 + 100 + 3 + 50
  assert result.seconds['other'] == 0.0


def test_lost_twice_is_counted_once(tmp_path, clock):
  for first, last in ((0, 100), (50, 60), (55, 70)):
    record = goodput.Goodput(tmp_path)
    clock.sleep(last - first)
    record.add('step', last - first, step=last, steps=last - first)
    record.flush()
  result = summary(tmp_path)
  assert (result.steps, result.lost_steps) == (70, 50 + 5)
  assert result.seconds == seconds(step=70.0, lost=55.0)


def test_random_histories_add_up(tmp_path, clock):
  """Against doing it step by step."""
  draw = random.Random(0)
  owner, cost, done = {}, {}, 0
  for incarnation in range(20):
    record = goodput.Goodput(tmp_path)
    first = draw.randint(0, done)
    done = first + draw.randint(1, 30)
    for step in range(first + 1, done + 1):
      clock.sleep(2)
      record.add('step', 2.0, step=step)
      if draw.random() < 0.3 or step == done:
        record.flush()
    owner = {k: v for k, v in owner.items() if k <= first}
    owner |= dict.fromkeys(range(first + 1, done + 1), incarnation)
    cost[incarnation] = done - first
    clock.sleep(draw.random())
  result = summary(tmp_path)
  assert result.steps == len(owner) == done
  assert result.lost_steps == sum(cost.values()) - done
  assert result.seconds['step'] == pytest.approx(2 * done)
  assert result.seconds['lost'] == pytest.approx(2 * result.lost_steps)
  lines = goodput.read(tmp_path)
  assert result.wall == pytest.approx(lines[-1]['time'] - lines[0]['time'])


def test_steps_and_waits_are_one_line_until_they_are_logged(tmp_path, clock):
  record = goodput.Goodput(tmp_path)
  work(clock, record, 0, 99, every=100)
  assert len(goodput.read(tmp_path)) == 1
  record.add('evaluation', 1.0)  # Written at once, after what was before it.
  kinds = [line['kind'] for line in goodput.read(tmp_path)]
  assert kinds == ['start', 'data_wait', 'step', 'evaluation']
  record.flush()
  assert len(goodput.read(tmp_path)) == 4


@pytest.mark.parametrize('keep', range(1, 60, 7))
def test_a_torn_line_is_passed_over(tmp_path, clock, keep):
  first = goodput.Goodput(tmp_path)
  work(clock, first, 0, 2)
  path = tmp_path / goodput.FILE
  whole = path.read_bytes()
  with path.open('ab') as f:  # What a kill leaves of the next line.
    f.write(whole.splitlines()[-1][:keep])
  clock.sleep(10)
  second = goodput.Goodput(tmp_path)
  work(clock, second, 2, 4)
  second.close()
  result = summary(tmp_path)
  assert (result.steps, result.incarnations) == (4, 2)
  assert result.seconds['downtime'] == 10.0


def test_a_span_that_fails_is_counted(tmp_path, clock):
  record = goodput.Goodput(tmp_path)

  def save():
    clock.sleep(3)
    raise OSError('disk')

  with pytest.raises(OSError, match='disk'), record.measure('checkpoint'):
    save()
  assert summary(tmp_path).seconds['checkpoint'] == 3.0


def test_only_one_process_writes(tmp_path):
  record = goodput.Goodput(tmp_path / 'run', active=False)
  record.add('init', 1.0)
  record.add('step', 1.0, step=1)
  record.close()
  assert not (tmp_path / 'run').exists()
  with pytest.raises(UserError, match='give the --workdir'):
    goodput.read(tmp_path / 'run')


@pytest.mark.parametrize(
  ('kind', 'step'),
  [('lost', None), ('sleep', None), ('step', None), ('init', 3)],
)
def test_unknown_buckets_are_refused(tmp_path, kind, step):
  record = goodput.Goodput(tmp_path)
  with pytest.raises(ValueError, match='no bucket'):
    record.add(kind, 1.0, step=step)


def test_a_line_says_what_it_is(tmp_path, clock):
  record = goodput.Goodput(tmp_path)
  record.add('step', 5.0, step=30, steps=10)
  record.close()
  other = goodput.Goodput(tmp_path)
  other.close()
  lines = (tmp_path / goodput.FILE).read_text().splitlines()
  names, rest = zip(
    *((line.pop('incarnation'), line) for line in map(json.loads, lines)),
    strict=True,
  )
  assert [len(list(g)) for _, g in itertools.groupby(names)] == [3, 2]
  assert rest[1] == {
    'time': 1000.0,
    'kind': 'step',
    'seconds': 5.0,
    'step': 30,
    'steps': 10,
  }
