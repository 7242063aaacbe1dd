"""Benchmarks of checkpoints, evaluation and growth: whole and honest tables."""

import dataclasses
import itertools
import math
import pathlib

import jax
import numpy as np
import pytest
from benchmarks import checkpoint, evaluating, growth, measuring
from PIL import Image

from xfactor import config as configs
from xfactor.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def recipe():
  config = configs.small()
  config.model.update(
    features=32, heads=2, encoder_layers=1, renderer_layers=1, patch_size=8
  )
  config.data.update(batch=2, image_size=16)
  config.eval.update(batch=3, lpips=False)
  config.train.accumulate = 1
  return config


@pytest.fixture
def no_cache():
  yield
  jax.config.update('jax_enable_compilation_cache', True)


def assert_positive(table):
  for row in table.summary()['rows'].values():
    for cell in row.values():
      assert math.isfinite(cell['median'])
      assert cell['median'] > 0


@pytest.mark.slow
def test_checkpoints_are_saved_and_restored(recipe, capsys, no_coroutines_left):
  (table,) = checkpoint.run(recipe, repeats=2)
  assert 'all restore the state' in capsys.readouterr().out
  assert table.things == ['asynchronous', 'synchronous']
  assert_positive(table)
  rows = table.rows
  assert set(rows) == {
    'loop stalled, wall s',
    'until on disk, wall s',
    'until on disk, CPU s',
    'written, MiB/s',
    'restore, wall s',
    'restore, CPU s',
    'read, MiB/s',
    'on disk, MiB',
  }
  size = float(table.title.split(' of ')[1].split(' MiB')[0])
  for thing in table.things:
    stalled, total, rate = (
      rows[row][thing]
      for row in (
        'loop stalled, wall s',
        'until on disk, wall s',
        'written, MiB/s',
      )
    )
    assert all(a <= b for a, b in zip(stalled, total, strict=True))
    assert np.multiply(total, rate) == pytest.approx(size, rel=0.01)
    # Noise hardly shrinks: what is there is the state, and one of it alone.
    assert rows['on disk, MiB'][thing][0] == pytest.approx(size, rel=0.3)


def test_another_state_is_refused(recipe):
  build = growth.Point(recipe).build
  state = checkpoint.make_state(build)
  checkpoint.check_states_equal(state, {'ours': state})
  name = max(state.params, key=lambda name: state.params[name].size)
  params = state.params | {name: state.params[name].at[0].add(1)}
  other = dataclasses.replace(state, params=params)
  with pytest.raises(measuring.Unequal, match=f"{name} restored by 'other'"):
    checkpoint.check_states_equal(state, {'ours': state, 'other': other})


@pytest.mark.slow
def test_evaluation_scores_the_same_one_by_one(recipe, capsys, monkeypatch):
  seen = {}

  def check(scores, *, coarse):
    seen.update(scores)
    return check_scores_equal(scores, coarse=coarse)

  check_scores_equal = evaluating.check_scores_equal
  monkeypatch.setattr(evaluating, 'check_scores_equal', check)
  (table,) = evaluating.run(recipe, repeats=1)
  assert 'all give the same scores' in capsys.readouterr().out
  assert table.things == ['batches of 3', 'one by one']
  assert 'no LPIPS' in table.title
  assert_positive(table)
  batch, rate = (table.rows[row] for row in ('wall, ms a batch', 'examples/s'))
  for thing, size in zip(table.things, (3, 1), strict=True):
    expected = 1e3 * size / rate[thing][0]
    assert batch[thing][0] == pytest.approx(expected)
  for who in ('model', 'halves', 'copy', 'mean'):
    wrong = seen['one by one'] | {
      who: {k: x[::-1] for k, x in seen['one by one'][who].items()}
    }
    mixed = {'ours': seen['batches of 3'], 'theirs': wrong}
    with pytest.raises(measuring.Unequal, match=f"of '{who}' differs"):
      check_scores_equal(mixed, coarse=True)


def test_scores_that_are_not_numbers_are_refused():
  scores = {'model': {'psnr': np.ones(2)}}
  wrong = {'model': {'psnr': np.array([1, np.nan])}}
  with pytest.raises(measuring.Unequal, match='psnr'):
    evaluating.check_scores_equal({'a': scores, 'b': wrong}, coarse=True)


@pytest.mark.soak
def test_growth_is_measured_where_it_fits(
  recipe, no_cache, tmp_path, capsys, monkeypatch
):
  # All but the last, the wider model.
  free = itertools.chain([1 << 50] * 4, [0])
  monkeypatch.setattr(growth, 'available_bytes', lambda: next(free))
  picture = tmp_path / 'growth.png'
  sizes = {'factors': [2.0], 'contexts': [1, 2]}
  curves = growth.run(recipe, **sizes, repeats=2, out=picture)
  said = capsys.readouterr().out
  assert said.startswith('skipped: width 64: it needs ')
  assert said.count('skipped') == 1
  assert [curve.things for curve in curves] == [
    ['batch 2', 'batch 4', 'batch 8', 'batch 16'],
    [f'context views {n}' for n in (1, 2, 8, 16)],
    ['image size 16', 'image size 32', 'image size 64', 'image size 128'],
    ['width 32', 'width 64', 'width 128', 'width 256'],
  ]
  for curve in curves:
    assert_positive(curve)
    own, grown, *further = curve.things
    measured = {own, grown} - {'width 64'}
    for row, things in (
      (growth.WALL, measured),
      ('step, CPU s', measured),
      ('model GFLOP/s', measured),
      (growth.MEMORY, {own, grown}),
      (growth.PREDICTED, {own, grown, *further}),
      ('model GFLOP', {own, grown, *further}),
    ):
      assert curve.rows[row].keys() == things
    (_, memory), (_, more) = curve.points(growth.MEMORY)
    assert more > memory
    assert curve.points(growth.PREDICTED)[0] == pytest.approx(
      curve.points(growth.WALL)[0]
    )
    work = [curve.rows['model GFLOP'][x][0] for x in curve.things]
    times = [curve.rows[growth.PREDICTED][x][0] for x in curve.things]
    assert np.divide(times, times[0]) == pytest.approx(np.divide(work, work[0]))
  batches = [x for (x,) in curves[0].rows['model GFLOP'].values()]
  assert np.divide(batches, batches[0]) == pytest.approx([1, 2, 4, 8])
  with Image.open(picture) as image:
    pixels = np.asarray(image.convert('RGB')).reshape(-1, 3).astype(int)
  red, _, blue = pixels.T
  assert (red - blue > 100).sum() > 50  # Memory.
  assert (blue - red > 100).sum() > 50  # Time.


def test_growth_says_early_what_cannot_be(recipe, tmp_path, monkeypatch):
  monkeypatch.setattr(growth.Point, 'compile', lambda *_: 1 << 30)
  monkeypatch.setattr(growth, 'available_bytes', lambda: 1 << 29)
  sizes = {'factors': [2.0], 'contexts': [1], 'repeats': 1}
  with pytest.raises(UserError, match=r'needs 1.00 GiB, 0.50.*smaller --batch'):
    growth.run(recipe, **sizes, out=None)
  with pytest.raises(UserError, match='cannot draw .*growth.doc'):
    growth.run(recipe, **sizes, out=tmp_path / 'growth.doc')


def test_one_thing_grows_at_a_time(recipe):
  wide = recipe.copy_and_resolve_references()
  wide.data.image_width = 48
  own = growth.own_sizes(wide)
  changed = {
    axis: growth.resized(wide, axis, 2 * base)
    for axis, (base, _) in own.items()
  }
  for axis, config in changed.items():
    expected = {name: base for name, (base, _) in own.items()}
    expected[axis] *= 2
    found = {k: base for k, (base, _) in growth.own_sizes(config).items()}
    assert found == expected
    head = config.model.features // config.model.heads
    assert head == wide.model.features // wide.model.heads
  assert changed['image size'].data.image_width == 96
  assert changed['batch'].data.image_width == 48
