"""Only one process trains in a workdir."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from xfactor.errors import UserError
from xfactor.training.resilience import lock as lock_lib
from xfactor.training.resilience import shutdown


def wait(condition):
  for _ in range(1000):
    if condition():
      return
    time.sleep(0.01)
  raise AssertionError('it did not come')


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(lock_lib, '_BEAT', 0.05)
  monkeypatch.setattr(lock_lib, '_WATCH', 0.3)
  monkeypatch.setattr(lock_lib, '_POLL', 0.02)


def put(folder, **owner):
  (folder / 'lock.json').write_text(json.dumps(owner))


def test_the_second_is_refused_and_the_next_is_not(tmp_path):
  first = lock_lib.Lock(tmp_path / 'run')
  said = f'process {os.getpid()} on {socket.gethostname()} .* for 0 minutes'
  with pytest.raises(UserError, match=said):
    lock_lib.Lock(tmp_path / 'run')
  assert lock_lib.holder(tmp_path / 'run').startswith('process')
  lock_lib.Lock(tmp_path / 'run', active=False).close()
  first.close()
  assert not lock_lib.holder(tmp_path / 'run')
  lock_lib.Lock(tmp_path / 'run').close()
  assert not list((tmp_path / 'run').iterdir())


def test_a_dead_process_of_this_host_holds_nothing(tmp_path):
  dead = subprocess.run(
    [sys.executable, '-c', 'import os; print(os.getpid())'],
    capture_output=True,
    check=True,
  )
  put(
    tmp_path, host=socket.gethostname(), process=int(dead.stdout), started='1'
  )
  assert not lock_lib.holder(tmp_path)
  lock_lib.Lock(tmp_path).close()


def test_another_process_with_the_same_number_holds_nothing(tmp_path):
  """As in a container that is started again."""
  put(tmp_path, host=socket.gethostname(), process=os.getpid(), started='1')
  lock_lib.Lock(tmp_path).close()


def test_a_dead_host_holds_nothing_after_a_while(tmp_path, quick, capsys):
  put(tmp_path, host='gone', process=7, started='1', time=time.time() + 99)
  began = time.monotonic()
  lock_lib.Lock(tmp_path).close()
  assert time.monotonic() - began >= 0.3
  assert 'process 7 on gone' in capsys.readouterr().err


def test_a_living_host_holds_it(tmp_path, quick, monkeypatch):
  monkeypatch.setattr(socket, 'gethostname', lambda: 'elsewhere')
  first = lock_lib.Lock(tmp_path)
  monkeypatch.undo()
  monkeypatch.setattr(lock_lib, '_WATCH', 5.0)
  monkeypatch.setattr(lock_lib, '_POLL', 0.02)
  with pytest.raises(UserError, match='on elsewhere'):
    lock_lib.Lock(tmp_path)
  first.close()


@pytest.mark.parametrize('text', ['', '{', '[]'])
def test_a_torn_lock_holds_nothing(tmp_path, quick, text):
  (tmp_path / 'lock.json').write_text(text)
  lock_lib.Lock(tmp_path).close()


def test_who_was_suspended_and_replaced_leaves(tmp_path, quick, monkeypatch):
  codes = []
  monkeypatch.setattr(shutdown, 'leave', codes.append)
  lock = lock_lib.Lock(tmp_path)
  put(tmp_path, host='other', process=1, token='other')
  wait(lambda: codes)
  lock.close()
  assert codes[0] == 2


def test_a_lock_that_cannot_be_read_is_not_waited_for_without_end(
  tmp_path, quick, monkeypatch
):
  monkeypatch.setattr(lock_lib, '_POLL', 0.001)
  monkeypatch.setattr(lock_lib.Lock, '_create', lambda self: False)
  with pytest.raises(UserError, match='can neither be made nor read.*remove'):
    lock_lib.Lock(tmp_path)
