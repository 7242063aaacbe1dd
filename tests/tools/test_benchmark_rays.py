"""SRT's benchmark: all ways compute the same, tricks are really omitted."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks import (
  measuring,
  rays,
)

from xfactor import config as configs
from xfactor.errors import UserError
from xfactor.methods.srt import objective as objectives

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def recipe():
  """A tiny improved SRT; the others of its widths have twice its depth."""
  config = configs.small('srt')
  config.model.update(
    features=16,
    heads=2,
    decoder_heads=2,
    mlp_features=16,
    conv_blocks=1,
    conv_features=4,
    encoder_layers=2,
    decoder_layers=1,
    octaves=4,
    coarse_samples=2,
    fine_samples=2,
  )
  config.data.image_size = 16
  config.data.contexts = 2
  config.objective.rays = 32
  return config


@pytest.fixture
def no_cache():
  yield
  jax.config.update('jax_enable_compilation_cache', True)


@pytest.mark.slow
def test_tables_are_whole(recipe, no_cache, capsys, monkeypatch):
  monkeypatch.setattr(rays, 'COMPARED', ('improved SRT',))
  sizes = {'batch': 2, 'size': 16, 'count': 32}
  tables = rays.run(recipe, **sizes, repeats=1, compiles=1)
  said = capsys.readouterr().out
  assert 'improved SRT: all give the same loss' in said
  assert 'skipped: fused attention' in said
  assert 'skipped: bfloat16' in said
  steps, loaders, pictures = summaries = [table.summary() for table in tables]
  things = {
    'ours',
    'rays from the host',
    'layers unrolled',
    'positions convolved',
    'nothing recomputed',
    'plain formulation',
  }
  quantities = {
    'step, wall s',
    'step, CPU s',
    'compile, CPU s',
    'XLA temporaries, MiB',
  }
  assert '2 scenes of 2 + 1 views at 16 x 16 pixels' in steps['title']
  assert set(steps['things']) == things
  assert set(steps['rows']) == quantities
  lines = [line.split('  ')[0] for line in str(tables[0]).splitlines()]
  assert lines[2:] == steps['things']
  memory = steps['rows']['XLA temporaries, MiB']
  # Or else it is ours under another name.
  assert all(
    memory[thing]['median'] != memory['ours']['median']
    for thing in things - {'ours', 'rays from the host'}
  )
  sent = loaders['rows']['KiB a scene']
  # Three views with cameras; two as colours and rays, and 32 targets.
  views, pixels = 3 * (16**2 * 3 + 4 * (4 + 12)), 2 * (16**2 * 6 + 3) + 32 * 9
  assert sent['uint8 views']['median'] == pytest.approx(views / 1024)
  assert sent['float32 rays']['median'] == pytest.approx(4 * pixels / 1024)
  assert set(pictures['rows']) == {'rays/s', 'rays/CPU s'}
  assert '320 x 240 pixels (volumetric: 32 x 24)' in pictures['title']
  for summary in summaries:
    for row in summary['rows'].values():
      assert row.keys() == set(summary['things'])
      for cell in row.values():
        assert math.isfinite(cell['median'])
        assert cell['median'] > 0


@pytest.mark.slow
def test_pytorch_computes_the_same(recipe, capsys):
  pytest.importorskip('torch')
  tables = rays.run_torch(
    recipe, batch=2, size=16, count=32, repeats=1, isolate=False
  )
  said = capsys.readouterr().out
  for name, table in zip(rays.COMPARED, tables, strict=True):
    assert f'{name}: all give the same loss' in said
    assert table.things == ['ours', 'PyTorch']
    rows = 'step, wall s', 'step, CPU s', 'peak RSS at the end, MiB'
    assert tuple(table.rows) == rows


def test_without_pytorch_the_command_is_told(recipe, monkeypatch):
  monkeypatch.setattr(rays.importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(UserError, match=r'pip install -e \.\[torch\]'):
    rays.run_torch(recipe, batch=2, size=16, count=32, repeats=1, isolate=False)


@pytest.mark.slow
@pytest.mark.parametrize(
  'objective',
  [
    objectives.Config(rays=5, inputs=2, input_stride=2),
    objectives.Config(rays=5, inputs=1, canonical=False, include_inputs=True),
  ],
)
def test_hosts_rays_are_those_of_the_device(objective):
  views = rays.make_views((2, 3, 4, 6, 3))
  first = objectives.first_target(objective)
  pixels = np.random.default_rng(0).integers(0, (3 - first) * 24, (2, 5))
  batch = rays.host_batch(views, objective, pixels)
  k = objective.inputs
  images, intrinsics, poses = map(jnp.asarray, views.values())
  poses = objectives.poses_of(poses, objective)
  inputs = objectives.inputs_of(
    images[:, :k], intrinsics[:, :k], poses[:, :k], objective.input_stride
  )
  colors, ray_origins, ray_directions = objectives.targets_of(
    images[:, first:],
    intrinsics[:, first:],
    poses[:, first:],
    jnp.asarray(pixels),
  )
  expected = {
    'images': jnp.moveaxis(inputs.images, -1, 2),
    'origins': inputs.origins,
    'directions': inputs.directions,
    'colors': colors,
    'ray_origins': ray_origins,
    'ray_directions': ray_directions,
  }
  assert batch.keys() == expected.keys()
  for name, array in expected.items():
    assert batch[name].dtype == np.float32
    np.testing.assert_allclose(batch[name], array, atol=1e-6, err_msg=name)


def test_host_draws_each_pixel_once():
  views = rays.make_views((1, 2, 4, 6, 3))
  drawn = rays.host_batch(views, objectives.Config(rays=24))['colors'][0]
  every = views['images'][0, 1].reshape(24, 3).astype(np.float32) / 255
  assert not np.array_equal(drawn, every)
  np.testing.assert_array_equal(*(np.sort(x, 0) for x in (drawn, every)))


def test_ways_that_differ_are_refused():
  same = {'loss': 0.5, 'grad_norm': 1.0}
  rays.check_steps_equal({'ours': same, 'plain': same}, 1e-3)
  for wrong in (
    {**same, 'loss': 0.5001},
    {**same, 'grad_norm': 1.002},
    {**same, 'grad_norm': float('nan')},
  ):
    with pytest.raises(measuring.Unequal, match="in 'ours'.*in 'plain'"):
      rays.check_steps_equal({'ours': wrong, 'plain': same}, 1e-3)


def test_tricks_of_an_accelerator(recipe):
  model = recipe.copy_and_resolve_references().model
  model.dtype, model.remat = 'bfloat16', 'none'
  found, missing = rays.ways(model, 'gpu')
  assert found['einsum attention'].model == {'attention': 'einsum'}
  assert found['float32, einsum attention'].model['dtype'] == 'float32'
  assert missing == ['remat: the recipe has none']
