"""The benchmark of a step's parts: their ways compute the same, or are refused.

tests/methods/xfactor/test_reference.py tests the public formulation itself.
"""

import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks import (
  measuring,
  parts,
  plain_xfactor,
)

from tests.conftest import QUICK
from xfactor import config as configs
from xfactor.errors import UserError
from xfactor.methods.xfactor import cost as xfactor_cost
from xfactor.metrics import lpips_weights
from xfactor.training import build as builds

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[2]
ONCE = {'repeats': 1, 'compiles': 1}


@pytest.fixture(scope='module')
def recipe():
  """Three views that are not square, one register, of a batch of one."""
  config = configs.small()
  config.model.update(features=16, heads=2, registers=1, patch_size=8)
  config.data.update(batch=1, image_size=32, image_width=48, contexts=2)
  config.train.accumulate = 1
  return config


@pytest.fixture
def no_cache():
  yield
  jax.config.update('jax_enable_compilation_cache', True)


def assert_whole(table, rates):
  """Each quantity is there for each thing, finite and above 0."""
  summary = table.summary()
  assert set(summary['rows']) == {
    'wall, ms',
    'CPU, ms',
    'compile, CPU s',
    'XLA temporaries, MiB',
    *rates,
  }
  for row in summary['rows'].values():
    assert row.keys() == set(summary['things'])
    for cell in row.values():
      assert math.isfinite(cell['median'])
      assert cell['median'] > 0
  return summary['rows']


def test_attention_is_the_dense_one(recipe, no_cache, capsys):
  tables = parts.run_attention(recipe, **ONCE)
  said = capsys.readouterr().out
  assert 'skipped: fused kernels' in said
  assert said.count('all compute the same') == 2
  encoder, renderer = tables
  ours = 'split, einsum'
  public = [f'{x}, 32 + 32 registers' for x in ('split', 'dense')]
  assert encoder.things == [ours, *public]
  assert renderer.things == [ours, 'dense']
  assert '2 examples of 2 views of 24 patches' in encoder.title
  assert '1 examples of 3 views of 24 patches' in renderer.title
  for table in tables:
    rows = assert_whole(table, ['GFLOP/s'])
    memory = rows['XLA temporaries, MiB']
    assert memory[table.things[-1]]['median'] > memory[ours]['median']
    # The same useful work for all.
    work = [
      rows['GFLOP/s'][x]['median'] * rows['wall, ms'][x]['median']
      for x in table.things
    ]
    assert work == pytest.approx([work[0]] * len(work))


def test_attention_flops_are_those_of_the_step(recipe):
  build = builds.build(recipe, jax.devices()[:1])
  model, views = build.model, build.views
  tokens = 32 * 48 // 8**2 // 2

  def dense(views, tokens):
    return 2 * 16 * model.features**2 * views * tokens

  encoder, renderer = (
    parts.attention_flops(build, *x) for x in ((2, 2, 1), (1, views, 0))
  )
  products = 3 * 2 * (2 * dense(2, tokens + 1) + dense(views, tokens))
  layers = model.encoder_layers
  assert layers == model.renderer_layers
  ends = dict.fromkeys(('encoder_layers', 'renderer_layers'), 0)
  sizes = {'batch': 1, 'views': views, 'height': 32, 'width': 48}
  whole, without = (
    xfactor_cost.train_step(x, **sizes)
    for x in (model, type(model)(**(vars(model) | ends)))
  )
  assert whole - without == layers * (encoder + renderer + products)


def test_a_wrong_mask_is_refused(recipe, monkeypatch, no_cache):
  attend = plain_xfactor.segment_attention
  monkeypatch.setattr(
    plain_xfactor,
    'segment_attention',
    lambda q, k, v, ids: attend(q, k, v, 0 * ids),
  )
  with pytest.raises(measuring.Unequal, match="'split, 32 .* 'dense, 32 "):
    parts.run_attention(recipe, **ONCE)


def test_halves_keep_the_order_of_their_tokens():
  halves = jnp.array([[0, 1, 0, 1], [1, 1, 0, 0]], bool)
  x = jnp.arange(8.0).reshape(2, 1, 4, 1, 1)
  np.testing.assert_array_equal(
    parts.take_halves(x, halves)[..., 0, 0],
    [[[0, 2]], [[1, 3]], [[6, 7]], [[4, 5]]],
  )


@pytest.mark.parametrize(
  ('platform', 'name', 'dtype', 'kernels', 'missing'),
  [
    ('gpu', 'auto', 'bfloat16', ['cudnn', 'einsum'], 0),
    ('gpu', 'einsum', 'bfloat16', ['einsum', 'cudnn'], 0),
    ('gpu', 'auto', 'float32', ['einsum'], 1),
    ('tpu', 'auto', 'bfloat16', ['splash', 'einsum'], 0),
  ],
)
def test_kernels_of_each_platform(
  platform, name, dtype, kernels, missing, monkeypatch
):
  monkeypatch.setattr(jax, 'default_backend', lambda: platform)
  found, why = parts.kernels_for(name, dtype)
  assert found == kernels
  assert len(why) == missing


def test_a_kernel_that_the_machine_lacks_is_refused():
  with pytest.raises(UserError, match='half precision only'):
    parts.kernels_for('cudnn', 'float32')


def test_lpips_takes_random_weights(recipe, no_cache, capsys, monkeypatch):
  def missing(*_):
    raise lpips_weights.MissingWeights

  monkeypatch.setattr(lpips_weights, 'load', missing)
  recipe = recipe.copy_and_resolve_references()
  recipe.data.update(image_size=16, image_width=16)
  (table,) = parts.run_lpips(recipe, **ONCE)
  said = capsys.readouterr().out
  assert 'random ones are used' in said
  assert 'all compute the same' in said
  dtypes = ['mixed', 'float32', 'bfloat16']  # The recipe's first.
  assert table.things == [*dtypes, 'float32, both sides']
  assert '1 pictures of 16 x 16' in table.title
  rows = assert_whole(table, ['GFLOP/s', 'pictures/s'])
  memory = rows['XLA temporaries, MiB']
  assert memory['float32, both sides']['median'] > memory['float32']['median']


def test_parts_that_differ_are_refused():
  def part(value, tolerance=1e-2):
    scalar, array = jnp.float32(value), jnp.full(3, value)
    part = parts.Case(
      lambda x: (scalar * x, array), (jnp.ones(()),), tolerance=tolerance
    )
    part.compile()
    return part

  assert parts.check_equal({'ours': part(1.0005), 'plain': part(1.0)})
  for wrong in (part(1.005), part(1.05), part(jnp.nan)):
    with pytest.raises(measuring.Unequal, match="of 'ours' and 'plain'"):
      parts.check_equal({'ours': wrong, 'plain': part(1.0)})


def test_a_part_without_temporaries_has_no_ratio(no_cache):
  same = {
    name: parts.Case(lambda x: x, (jnp.ones(3),)) for name in ('ours', 'plain')
  }
  table = parts.measure('nothing', same, {}, **ONCE)
  assert 'XLA temporaries, MiB' not in table.rows
  assert 'wall, ms' in str(table)


def test_augmentation_by_the_command(tmp_path):
  path = tmp_path / 'numbers.json'
  result = subprocess.run(
    [
      *(sys.executable, str(ROOT / 'tools/benchmark.py'), 'augment'),
      *('--repeats=1', '--compiles=1', '--batch=3', f'--json={path}'),
      *('--config.data.image_size=32', '--config.data.contexts=2'),
    ],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**os.environ, 'XLA_FLAGS': QUICK, 'PYTHONPATH': str(ROOT)},
  )
  assert result.returncode == 0, result.stderr
  assert 'all compute the same' in result.stdout
  (table,) = json.loads(path.read_text())['augment']
  assert '6 pairs of 32 x 32 pixels' in table['title']
  assert table['things'] == ['ours', 'a switch an image']
  rows = table['rows']
  for thing in table['things']:
    wall, rate = (rows[x][thing]['median'] for x in ('wall, ms', 'pictures/s'))
    assert wall * rate == pytest.approx(1000 * 12)
