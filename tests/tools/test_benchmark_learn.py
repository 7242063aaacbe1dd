"""The three trainings of `benchmark.py learn`: their rows and what they say."""

import pathlib
import re

import numpy as np
import pytest
from benchmarks import learn

from tests.training import small
from xfactor import config as configs
from xfactor.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]

DRAWN = ['PSNR, dB', "another's", 'better, %']


def recipe_of(folder, name='skies', **changes):
  mix = {name: configs.part(begin=3, end=6)}
  changes = {'model__pose_dim': 8, 'data__min_length': 4} | changes
  return small.recipe(folder, data__mix=mix, **changes)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return small.make_posed_data(tmp_path_factory.mktemp('posed'))


@pytest.mark.slow
def test_rows_of_the_three_trainings(folder, capsys, monkeypatch):
  monkeypatch.setattr(learn, '_FITTED', 64)
  monkeypatch.setattr(learn, '_HELD_OUT', 32)
  (report,) = learn.run(recipe_of(folder), updates=2)
  rows = report.rows
  assert list(rows) == ['renderer', 'encoder', 'joint']
  for found in rows.values():
    assert [row['updates'] for row in found] == [0, 1, 2]
    cpu = [row['CPU s'] for row in found]
    assert cpu == sorted(cpu)
    assert all(np.isfinite(list(row.values())).all() for row in found)
    assert len({tuple(row) for row in found}) == 1
  r2 = [name for name in rows['encoder'][0] if name.startswith('R2 ')]
  assert r2
  assert list(rows['renderer'][0]) == ['updates', 'CPU s', *DRAWN]
  assert list(rows['encoder'][0]) == ['updates', 'CPU s', *r2]
  assert list(rows['joint'][0]) == ['updates', 'CPU s', *DRAWN, *r2]
  # They start alike, and each trains what it tests.
  start = {name: rows['joint'][0][name] for name in r2}
  assert start == {name: rows['encoder'][0][name] for name in r2}
  assert rows['renderer'][2]['PSNR, dB'] != rows['renderer'][0]['PSNR, dB']
  assert rows['encoder'][2] != rows['encoder'][0]
  last = {name: found[-1] for name, found in rows.items()}
  assert str(report) == learn.conclude(last)
  assert report.summary()['rows'] == rows
  # A title, and of each of the three a name, a head and three rows.
  printed = capsys.readouterr().out.splitlines()
  assert len(printed) == 1 + 3 * 5
  assert printed[0] == report.title
  assert printed[2].split()[:4] == ['updates', 'CPU', 's', 'PSNR,']


@pytest.mark.parametrize(
  ('better', 'pan', 'both', 'sentence'),
  [
    (50, 0.1, 0.9, 'both together learn all motions'),
    (90, 0.1, 0.0, 'the renderer learns .* does not learn pan .*tie_qk'),
    (90, 0.9, 0.1, 'the encoder learns .* do not learn pan: .*smaller motions'),
    (60, 0.9, 0.1, 'the renderer does not .*encoder learns .*renderer_layers'),
    (60, np.nan, np.nan, 'does not learn from .* not learn pan .*may help'),
  ],
)
def test_the_conclusion_follows_from_the_last_rows(better, pan, both, sentence):
  last = {
    'renderer': {learn.BETTER: better},
    'encoder': {'R2 pan': pan, 'R2 tilt': 0.8},
    'joint': {learn.BETTER: 50.0, 'R2 pan': both, 'R2 tilt': 0.8},
  }
  assert re.search(sentence, learn.conclude(last))


@pytest.mark.slow
def test_true_motions_have_a_deviation_of_one(folder):
  _, fitted, _ = learn._open(recipe_of(folder), updates=4)
  scale = learn._scale(fitted)
  motions = learn._with_motions(fitted, scale)['motions']
  spread = motions[:, scale > 0].std(0)
  np.testing.assert_allclose(spread, 1, rtol=1e-4)
  assert not motions[:, scale == 0].any()


def test_cameras_that_stand_still_are_refused():
  still = {
    'images': np.zeros((3, 2, 8, 8, 3), np.uint8),
    'frames': np.zeros((3, 2), np.int32),
    'world_to_camera': np.tile(np.eye(3, 4), (3, 2, 1, 1)),
  }
  with pytest.raises(UserError, match='none does'):
    learn._scale(still)


def test_a_data_set_without_cameras_is_refused(tmp_path):
  folder = small.make_data(tmp_path)
  with pytest.raises(UserError, match='squares/train has no cameras'):
    learn.run(recipe_of(folder, 'squares'), updates=1)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'data__contexts': 2}, 'config.data.contexts=1, not 2'),
    ({'data__offset_prob': 0.5}, 'config.data.offset_prob=0.0, not 0.5'),
    ({'objective__contrast': 'simclr'}, "objective.contrast='', not 'simclr'"),
    ({'model__pose_dim': 5}, 'pose_dim of 6 or more, not 5'),
  ],
)
def test_recipes_that_it_cannot_tell_motions_are_refused(changes, message):
  with pytest.raises(UserError, match=message) as caught:
    learn.run(recipe_of('nowhere', **changes), updates=1)
  assert '\n' not in str(caught.value)
