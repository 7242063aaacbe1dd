"""Experiment trackers: what they are sent, and what happens if they fail."""

import contextlib
import json
import sys
import types

import numpy as np
import pytest

from tests.training import small
from xfactor.errors import UserError
from xfactor.training import loop
from xfactor.training.telemetry import trackers, writers

PICTURE = np.full((4, 6, 3), 7, np.uint8)


class FakeRun:
  def __init__(self, sent, **options):
    self.sent = sent
    sent.append(('init', options))

  def define_metric(self, name, step_metric):
    self.sent.append(('define', name, step_metric))

  def log(self, values, step=None):
    self.sent.append(('log', values, step))

  def finish(self):
    self.sent.append(('finish',))


@pytest.fixture
def fake(monkeypatch):
  """What each tracker's package is called with."""
  sent = {}
  for name in ('wandb', 'trackio'):
    calls = sent.setdefault(name, [])
    module = types.ModuleType(name)
    module.init = lambda calls=calls, **options: FakeRun(calls, **options)
    module.Image = lambda array: ('image', array.tobytes())
    monkeypatch.setitem(sys.modules, name, module)
  return sent


def write(workdir, **options):
  with contextlib.closing(writers.Writer(workdir, **options)) as writer:
    writer.scalars(3, {'loss': 0.5, 'eval/rooms/psnr': 20.0})
    writer.image(3, 'rooms_transfer', PICTURE)


def test_trackers_get_what_tensorboard_gets(tmp_path, fake):
  workdir = tmp_path / 'walk'
  options = {'log': 'wandb,trackio', 'config': {'seed': 5}}
  write(workdir, **options)
  values = {'loss': 0.5, 'eval/rooms/psnr': 20.0}
  image = ('image', PICTURE.tobytes())
  began, *rest = fake['wandb']
  run_id = began[1]['id']
  assert began[1] == {
    'project': 'xfactor',
    'name': 'walk',
    'id': run_id,
    'dir': str(workdir),
    'config': {'seed': 5},
    'resume': 'allow',
  }
  assert rest == [
    ('define', '*', 'step'),
    ('log', values | {'step': 3}, None),
    ('log', {'rooms_transfer': image, 'step': 3}, None),
    ('finish',),
  ]
  began, *rest = fake['trackio']
  assert began[1] == {
    'project': 'xfactor',
    'name': f'walk-{run_id}',
    'config': {'seed': 5},
    'resume': 'allow',
  }
  assert rest == [
    ('log', values, 3),
    ('log', {'rooms_transfer': image}, 3),
    ('finish',),
  ]
  assert json.loads((workdir / 'metrics.jsonl').read_text())['loss'] == 0.5
  # A resumed run is the same one; another folder is another.
  write(workdir, **options)
  write(tmp_path / 'other', **options)
  ids = [call[1]['id'] for call in fake['wandb'] if call[0] == 'init']
  assert ids[0] == ids[1] != ids[2]


def test_only_the_first_process_tracks(tmp_path, fake):
  write(tmp_path, active=False, log='wandb')
  write(tmp_path)
  assert not fake['wandb']


def test_a_tracker_that_fails_stops_no_run(tmp_path, fake, monkeypatch, capsys):
  def log(self, values, step=None):
    raise ConnectionError('no network')

  monkeypatch.setattr(FakeRun, 'log', log)
  write(tmp_path, log='trackio')
  assert 'loss' in (tmp_path / 'metrics.jsonl').read_text()
  said = capsys.readouterr().err.splitlines()
  assert said == ['trackio fails (no network)']


def test_a_tracker_that_does_not_start(tmp_path, fake, monkeypatch):
  def init(**options):
    raise RuntimeError('api_key not configured\nmore')

  monkeypatch.setattr(sys.modules['wandb'], 'init', init)
  with pytest.raises(UserError, match=r'wandb does not start \(api_key not'):
    writers.Writer(tmp_path, log='wandb')


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(UserError, match=r"install .*pip install -e '.\[log\]'"):
    trackers.check('wandb')


def test_an_unknown_tracker_is_refused_before_anything_is_written(tmp_path):
  config = small.recipe('none').unlock()
  config.log = 'trackr'
  config.compile_cache = False
  with pytest.raises(UserError, match='choose from trackio, wandb'):
    loop.train(config.lock(), str(tmp_path))
  assert not list(tmp_path.iterdir())
