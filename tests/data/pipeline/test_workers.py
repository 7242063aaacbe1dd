"""However the work is divided, the global batches are the same."""

import itertools

import numpy as np
import pytest
from absl import flags

from tests.data.pipeline.test_training import (
  assert_same,
  config,
  flip_bits,
  make_data,
  truncate,
)
from xfactor.data.pipeline import training
from xfactor.data.pipeline.training import Pipeline
from xfactor.errors import UserError

STEPS = 4


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A mixture of which five clips of thirteen cannot be read."""
  folder = make_data(tmp_path_factory.mktemp('data'))
  truncate(folder, 'one', [2, 5])
  truncate(folder, 'two', [1])
  flip_bits(folder, 'one', 3)
  flip_bits(folder, 'two', 4)
  return folder


@pytest.fixture
def parsed_flags():
  """Worker processes get the flags, which binaries have parsed."""
  if flags.FLAGS.is_parsed():
    yield
  else:
    flags.FLAGS.mark_as_parsed()
    yield
    flags.FLAGS.unparse_flags()


def read(data, start, index=0, count=1, **changes):
  """Returns one process's batches and its count of unreadable examples."""
  pipe = Pipeline(config(data, **changes), index, count)
  batches = pipe.batches(start)
  out = list(itertools.islice(batches, STEPS))
  batches.close()
  return out, batches.bad


def assert_divided_alike(data, start, count, **changes):
  """`count` processes read what one alone does, from a step on."""
  want, bad = read(data, start)
  shares = [read(data, start, i, count, **changes) for i in range(count)]
  whole = [
    {key: np.concatenate([b[key] for b in parts]) for key in parts[0]}
    for parts in zip(*(batches for batches, _ in shares), strict=True)
  ]
  assert_same(whole, want)
  assert min(bad.values()) >= 1
  assert {k: sum(share[k] for _, share in shares) for k in bad} == bad


@pytest.mark.parametrize('start', [0, 5])
@pytest.mark.parametrize('threads', [0, 3])
@pytest.mark.parametrize('count', [1, 2, 4, 8])
def test_any_number_of_hosts_and_threads(data, start, threads, count):
  assert_divided_alike(data, start, count, threads=threads)


@pytest.mark.slow
@pytest.mark.parametrize(('workers', 'count'), [(1, 2), (2, 1), (2, 2)])
def test_any_number_of_workers(data, parsed_flags, workers, count):
  assert_divided_alike(data, 5, count, workers=workers, threads=2)


def test_a_run_goes_on_with_other_hosts(data):
  """Steps of 1, then 8, 2 and 4 hosts are those of one that never stopped."""
  batches = Pipeline(config(data)).batches()
  straight = list(itertools.islice(batches, 4 * STEPS))
  for part, count in enumerate((1, 8, 2, 4)):
    shares = [read(data, part * STEPS, i, count)[0] for i in range(count)]
    for step in range(STEPS):
      for key, want in straight[part * STEPS + step].items():
        got = np.concatenate([share[step][key] for share in shares])
        np.testing.assert_array_equal(got, want, err_msg=key)


@pytest.mark.parametrize('workers', [0, 1])
def test_errors_reach_the_user(data, tmp_path, parsed_flags, workers):
  """As they are, from another process, too."""
  folder = make_data(tmp_path)
  truncate(folder, 'two', list(range(5)))
  with pytest.raises(UserError, match='two/train.* in a row could not be read'):
    read(folder, 0, workers=workers)


@pytest.mark.parametrize('workers', [0, 2])
def test_the_rate_is_judged_whoever_reads(
  data, monkeypatch, parsed_flags, workers
):
  monkeypatch.setattr(training, '_MIN_JUDGED', 20)
  with pytest.raises(UserError, match='could not be read, more than 1.00%'):
    read(data, 0, workers=workers)
