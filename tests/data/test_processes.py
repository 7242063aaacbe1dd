"""Worker processes hear neither Ctrl-C nor survive."""

import os
import signal

import pytest

from xfactor.data import processes
from xfactor.errors import UserError


def blocked(_=None) -> bool:
  return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def die(_=None) -> None:
  os.kill(os.getpid(), signal.SIGKILL)


def test_interrupts_reach_the_main_process_only():
  with processes.pool(1) as pool:
    assert pool.submit(blocked).result()
    assert not blocked()


def test_killed_worker_is_one_sentence():
  with (
    pytest.raises(UserError, match='killed, .* fewer --workers'),
    processes.pool(1) as pool,
  ):
    list(pool.map(die, [0]))


def test_no_workers():
  done = []
  with processes.pool(0, done.append, ('begun',)) as pool:
    results = pool.map(done.append, ['mapped'])
    assert done == ['begun']  # One at a time, when it is asked for.
    next(results)
    pool.submit(done.append, 'submitted').result()
    with pytest.raises(ZeroDivisionError):
      pool.submit(lambda: 1 / 0)
  assert done == ['begun', 'mapped', 'submitted']
