"""Several context views end to end, from scratch and from a stereo model."""

import json

import jax
import numpy as np
import pytest

import xfactor
from tests.training import small
from xfactor.errors import UserError
from xfactor.training import build, loop
from xfactor.training.resilience import checkpoints as checkpoints_lib

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return small.make_data(tmp_path_factory.mktemp('data'))


def recipe(data, **changes):
  # Without whole steps there is one program to compile instead of two.
  return small.recipe(
    data, data__contexts=2, objective__unmasked_prob=0.0, **changes
  )


@pytest.fixture(scope='module')
def stereo(data, tmp_path_factory):
  """A stereo run of three updates."""
  workdir = tmp_path_factory.mktemp('stereo')
  config = small.recipe(data, objective__unmasked_prob=0.0, train__steps=3)
  loop.train(config, str(workdir))
  return workdir


def params_of(config, workdir, step=None):
  built = build.build(config)
  checkpoints = checkpoints_lib.Checkpoints(workdir, create=False)
  _, params = checkpoints.restore_params(built.abstract_state().params, step)
  checkpoints.close()
  return jax.device_get(params)


@pytest.mark.parametrize('networks', ['both', 'pose_encoder'])
def test_starts_from_a_stereo_model(data, stereo, tmp_path, networks, capsys):
  config = recipe(data, train__steps=3).unlock()
  config.init_from = str(stereo)
  config.init_networks = networks
  config.optimizer.learning_rate = 1e-12
  config.optimizer.final_learning_rate = 1e-12
  config.lock()
  loop.train(config, str(tmp_path))
  start = params_of(small.recipe(data), stereo)
  new = jax.device_get(build.build(config).init().params)
  end = params_of(config, tmp_path)
  for name, array in end.items():
    loaded = networks == 'both' or name.startswith('pose_encoder/')
    want = start if loaded else new
    np.testing.assert_allclose(array, want[name], atol=1e-6, err_msg=name)
  assert any(not np.array_equal(start[k], new[k]) for k in start)
  text = capsys.readouterr().out
  which = 'pose_encoder and renderer' if networks == 'both' else 'pose_encoder'
  assert f'state  {which} of {stereo}/checkpoints/3: ' in text
  # Pictures show the two contexts, the prediction and the truth.
  scores = json.loads((tmp_path / 'eval/00000003.json').read_text())
  assert scores['data']['squares']['examples'] == 6


def test_learns_with_two_contexts(data, tmp_path):
  config = recipe(
    data,
    train__steps=40,
    train__log_every=10,
    optimizer__learning_rate=5e-3,
  )
  loop.train(config, str(tmp_path))
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  losses = [line['loss'] for line in map(json.loads, lines) if 'loss' in line]
  assert losses[-1] < 0.9 * losses[0]


def test_a_start_that_does_not_fit(data, stereo, tmp_path):
  config = recipe(data, model__pose_dim=8).unlock()
  config.init_from = str(stereo)
  with pytest.raises(UserError, match='holds another model.*pose_encoder/head'):
    loop.train(config.lock(), str(tmp_path / 'run'))
  config = recipe(data).unlock()
  config.init_from = str(tmp_path / 'nowhere')
  with pytest.raises(UserError, match='there is no checkpoint in .*nowhere'):
    loop.train(config.lock(), str(tmp_path))


def test_unknown_networks_are_refused(data):
  config = recipe(data).unlock()
  config.init_networks = 'encoder'
  with pytest.raises(UserError, match='"both" or "pose_encoder"'):
    build.build(config.lock())


@pytest.fixture(scope='module')
def rust(data, tmp_path_factory):
  """A run of RUST with two contexts; its metrics and the model."""
  workdir = tmp_path_factory.mktemp('rust')
  config = small.baseline_recipe(
    'rust',
    data,
    data__contexts=2,
    train__steps=40,
    train__log_every=10,
    optimizer__learning_rate=5e-3,
  )
  loop.train(config, str(workdir))
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return list(map(json.loads, lines)), xfactor.load(workdir)


def test_rust_learns_from_clips(rust):
  losses = [line['loss'] for line in rust[0] if 'loss' in line]
  assert losses[-1] < 0.9 * losses[0]
  names = {name for line in rust[0] for name in line}
  assert {'eval/squares/psnr', 'eval/squares/shuffled_psnr'} <= names
  assert 'eval/squares/halves_psnr' not in names


def test_a_baseline_can_be_asked_to_transfer(rust):
  _, model = rust
  assert (model.pose_dim, model.contexts, model.window) == (8, 2, 6)
  walk = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
  poses = model.encode_poses(walk)
  assert poses.shape == (4, 8)
  assert np.abs(poses[1:] - poses[1]).max() > 0
  scene = walk[:2, ::-1]
  pictures = model.render(scene, poses[:2], poses)
  assert pictures.shape == (4, 32, 32, 3)
  moved = model.transfer(motion=walk, scene=scene, scene_reference=0)
  assert moved.shape == pictures.shape


def test_shifted_examples_come_out_of_the_pipeline(data, tmp_path):
  config = recipe(data, data__offset_prob=1.0, data__offset=2, train__steps=3)
  built = build.build(config)
  assert (built.views, built.frames) == (3, 6)
  loop.train(config, str(tmp_path))
  scores = json.loads((tmp_path / 'eval/00000003.json').read_text())
  assert scores['data']['squares']['examples'] == 6
