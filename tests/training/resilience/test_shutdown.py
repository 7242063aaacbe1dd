"""Being told to stop, in one process; tests/faults has whole runs."""

import contextlib
import os
import signal
import time

import pytest

from xfactor.training import control
from xfactor.training.resilience import requests as requests_lib
from xfactor.training.resilience import shutdown, watchdog


def tell(signum=signal.SIGTERM):
  os.kill(os.getpid(), signum)


@pytest.fixture
def codes(monkeypatch):
  """Exit codes of what would have ended the process."""
  found = []
  monkeypatch.setattr(shutdown, 'leave', found.append)
  return found


@contextlib.contextmanager
def interrupted():
  """A run that is to end by being interrupted."""
  try:
    with shutdown.handling() as told:
      yield told
  except shutdown.Interrupted:
    return
  raise AssertionError('was not interrupted')


def wait(condition):
  for _ in range(1000):
    if condition():
      return
    time.sleep(0.01)
  raise AssertionError('waited in vain')


def test_it_is_raised_at_once():
  with interrupted():
    tell()
    time.sleep(10)


def test_a_closed_terminal_counts_unless_it_is_ignored():
  with interrupted():
    tell(signal.SIGHUP)
    time.sleep(10)
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with shutdown.handling() as told:
      tell(signal.SIGHUP)
      time.sleep(0.1)
      assert not told.requested
  finally:
    signal.signal(signal.SIGHUP, before)


def test_deferred_it_is_noted_and_raised_in_the_end():
  done = []
  with interrupted() as told:
    with told.deferred():
      assert not told.requested
      tell(signal.SIGINT)
      wait(lambda: told.requested)
      done.append('inside')
    done.append('after')
  assert done == ['inside']


def test_inside_deferred_it_can_be_at_once():
  done = []
  with interrupted() as told, told.deferred():
    with told.at_once():
      done.append('before')
    tell()
    wait(lambda: told.requested)
    with told.at_once():
      done.append('inside')
  assert done == ['before']


def test_errors_are_errors_unless_told_to_stop():
  with pytest.raises(ValueError, match='own'), shutdown.handling():
    raise ValueError('own')
  with interrupted() as told:
    with told.deferred():
      tell()
      wait(lambda: told.requested)
    raise ValueError('of those who wait for one that has left')


def test_cleaning_up_is_not_interrupted():
  done = []
  with interrupted() as told:
    try:
      tell()
      time.sleep(10)
    finally:
      tell()
      wait(lambda: told.requested)
      done.append('cleaned up')
  assert done


def test_what_was_there_before_is_there_after():
  before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
  with shutdown.handling():
    assert signal.getsignal(signal.SIGTERM) != before[0]
  after = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
  assert after == before
  assert signal.set_wakeup_fd(-1) == -1


def test_the_second_ctrl_c_leaves(codes):
  with interrupted() as told, told.deferred():
    tell(signal.SIGINT)
    wait(lambda: told.requested)
    assert not codes
    tell(signal.SIGINT)
    wait(lambda: codes)
  assert codes[0] == 130


def test_who_does_not_come_is_left_behind(codes, monkeypatch):
  monkeypatch.setattr(shutdown, '_GRACE', 0.1)
  with interrupted() as told:
    monkeypatch.setattr(told, '_raise_if_requested', lambda: None)
    with told.deferred():
      tell()
      wait(lambda: told.requested)
      time.sleep(1)
      assert not codes
    wait(lambda: codes)
    raise shutdown.Interrupted
  assert set(codes) == {42}


def test_the_watchdog_leaves_without_progress_alone(codes, tmp_path, capfd):
  dog = watchdog.Watchdog(tmp_path, 0.005, process=3)
  wait(lambda: codes)
  dog.close()
  assert set(codes) == {137}
  assert 'no progress for 0.005 minutes' in capfd.readouterr().err
  stacks = (tmp_path / 'stacks-3.txt').read_text()
  assert 'in test_the_watchdog_leaves_without_progress_alone' in stacks


def test_progress_calms_the_watchdog(codes, tmp_path):
  dog = watchdog.Watchdog(tmp_path, 0.01, process=0)
  began = time.monotonic()
  while time.monotonic() - began < 2:
    dog.progress()
    time.sleep(0.001)
  dog.close()
  assert not codes


def test_no_limit_is_no_watchdog(codes, tmp_path):
  dog = watchdog.Watchdog(tmp_path, 0.0, process=0)
  time.sleep(0.2)
  dog.close()
  assert not codes


class Clock:
  now = 0.0


@pytest.fixture
def clock(monkeypatch):
  monkeypatch.setattr(requests_lib.time, 'monotonic', lambda: Clock.now)
  return Clock


def test_a_save_is_asked_for_once_the_last_is_old(clock):
  clock.now = 0.0
  requests = requests_lib.Requests(2.0, decides=True)
  assert requests.ask(stop=False) == control.NOTHING
  clock.now = 121.0
  assert requests.ask(stop=False) == control.SAVE
  assert requests.ask(stop=False) == control.NOTHING
  requests.hear(control.NOTHING)
  requests.hear(control.SAVE)
  requests.hear(control.NOTHING)
  assert requests.agreed == control.SAVE
  requests.saving()
  assert requests.agreed == control.NOTHING
  clock.now = 500.0  # It takes long: nothing more is asked for meanwhile.
  assert requests.ask(stop=False) == control.NOTHING
  requests.saved()
  assert requests.ask(stop=False) == control.NOTHING
  clock.now = 621.0
  assert requests.ask(stop=False) == control.SAVE


def test_to_stop_is_asked_for_until_it_is_done(clock):
  clock.now = 0.0
  requests = requests_lib.Requests(0.0, decides=True)
  assert [requests.ask(stop=True) for _ in range(2)] == [control.STOP] * 2
  requests.hear(control.STOP)
  requests.hear(control.SAVE)
  requests.saving()
  assert requests.agreed == control.STOP


def test_only_one_clock_decides(clock):
  clock.now = 0.0
  requests = requests_lib.Requests(1.0, decides=False)
  clock.now = 1e6
  assert requests.ask(stop=False) == control.NOTHING
