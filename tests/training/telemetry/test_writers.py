"""Logs on a full disk, and after a run was killed."""

import contextlib
import json
import resource
import signal

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from xfactor.data.formats import tfrecord
from xfactor.training.telemetry import appending, goodput, writers


@contextlib.contextmanager
def full_disk(size):
  """Files cannot grow beyond a size."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def events(folder):
  return [
    event_pb2.Event.FromString(record)
    for path in sorted((folder / 'tensorboard').iterdir())
    for record in tfrecord.read(path)
  ]


def test_lines_that_do_not_fit_are_written_later(tmp_path, capsys):
  file = appending.Appender(tmp_path / 'log')
  file.append(b'1' * 9 + b'\n')
  with full_disk(15):
    for _ in range(3):
      file.append(b'2' * 9 + b'\n')
    assert (tmp_path / 'log').read_bytes() == b'1' * 9 + b'\n'
  file.append(b'end\n')
  assert (tmp_path / 'log').read_text().split() == [
    '1' * 9,
    *['2' * 9] * 3,
    'end',
  ]
  said = capsys.readouterr().err.splitlines()
  assert len(said) == 2
  assert 'cannot write' in said[0]
  assert 'can be written again' in said[1]


def test_what_waits_for_room_is_bounded(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(appending, '_MOST', 30)
  file = appending.Appender(tmp_path / 'log')
  with full_disk(0):
    for i in range(9):
      file.append(f'{i:09d}\n'.encode())
  file.append(b'')
  assert (tmp_path / 'log').read_text().split() == [
    f'{i:09d}' for i in (6, 7, 8)
  ]


def test_a_full_disk_holds_up_no_writer(tmp_path, capsys):
  writer = writers.Writer(tmp_path)
  spent = goodput.Goodput(tmp_path)
  picture = np.zeros((8, 8, 3), np.uint8)
  writer.scalars(0, {'loss': 1.0})
  writer.image(0, 'panel', picture)
  with full_disk(400):
    for step in range(1, 200):
      writer.scalars(step, {f'k{i}': 1.0 for i in range(14)})
      spent.add('step', 0.1, step=step)
      spent.flush()
    writer.image(
      1,
      'panel',
      np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8),
    )
    writer.header({'config': 'x' * 500})
    writer.curves()
  writer.scalars(200, {'loss': 0.5})
  writer.close()
  spent.close()
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [*range(201)]
  steps = [e.step for e in events(tmp_path) if e.summary.value]
  assert steps.count(7) == 14
  assert goodput.summarize(goodput.read(tmp_path)).steps == 199
  said = capsys.readouterr().err
  for name in ('metrics.jsonl', 'tfevents', 'panels', 'run.json', 'curves.png'):
    assert f'{name}' in said
  assert said.count('cannot write') == 6


def test_curves_do_not_run_backwards_after_a_crash(tmp_path):
  first = writers.Writer(tmp_path)
  first.scalars(4, {'loss': 1.0})
  first.scalars(6, {'loss': 0.9})  # The checkpoint is of step 4.
  second = writers.Writer(tmp_path)
  second.resume(4)
  second.scalars(6, {'loss': 0.8})
  found = events(tmp_path)
  (start,) = [i for i, x in enumerate(found) if x.HasField('session_log')]
  assert found[start].session_log.status == event_pb2.SessionLog.START
  assert found[start].step == 5
  backend = pytest.importorskip(
    'tensorboard.backend.event_processing.event_accumulator'
  )
  read = backend.EventAccumulator(str(tmp_path / 'tensorboard'))
  read.Reload()
  assert [(x.step, round(x.value, 2)) for x in read.Scalars('loss')] == [
    (4, 1.0),
    (6, 0.8),
  ]


def test_evaluations_that_were_interrupted_are_known(tmp_path):
  assert not writers.has_evaluation(tmp_path, 4)
  writer = writers.Writer(tmp_path)
  writer.scalars(4, {'loss': 1.0})
  assert not writers.has_evaluation(tmp_path, 4)
  writer.scalars(4, {'eval/rooms/psnr': 20.0})
  assert writers.has_evaluation(tmp_path, 4)
  assert not writers.has_evaluation(tmp_path, 6)
