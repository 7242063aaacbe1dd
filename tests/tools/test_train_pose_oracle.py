"""Training the learned pose oracle: exact symmetries, data, gate, command."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import commands
from tests.conftest import QUICK
from tests.test_recipes import load
from tests.training import small
from xfactor.data.convert import run as convert_run
from xfactor.data.records import store as store_lib
from xfactor.data.sources import synthetic
from xfactor.errors import UserError
from xfactor.evaluation import oracles
from xfactor.evaluation.oracles.learned import gate as gate_lib
from xfactor.evaluation.oracles.learned import network as learned_network
from xfactor.evaluation.oracles.learned import oracle as learned_oracle
from xfactor.evaluation.oracles.learned import training as learned_training
from xfactor.geometry import cameras

ROOT = pathlib.Path(__file__).resolve().parents[2]
FRAMES, SIZE = 9, 16


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  rooms = synthetic.Source(
    scenes=8, frames=FRAMES, size=SIZE, test_fraction=0.5
  )
  for source, name in ((rooms, 'rooms'), (small.Squares(), 'squares')):
    convert_run.convert(source, folder, name=name, workers=0, quiet=True)
  return folder


@pytest.fixture
def config(data_dir):
  out = load('pose_oracle').get_config()
  out.model.update(
    image_size=SIZE, features=16, heads=1, head_dim=8, width=32, layers=1
  )
  out.data.update(dir=str(data_dir), names='rooms')
  out.train.update(steps=3, windows=2, gap=3, warmup_steps=1, log_every=2)
  out.gate.update(windows=(5, 8), frames=4)
  return out


def room(seed, points=40):
  """Points in front of a camera that moves, and its poses [3, 4]."""
  rng = np.random.default_rng(seed)
  eyes = rng.normal(size=(3, 3)) * 0.3
  target = np.array([0.0, 4.0, 0.0]) + rng.normal(size=(3, 3)) * 0.3
  up = np.array([0.0, 0.0, 1.0])
  world = rng.uniform(-1.5, 1.5, (points, 3)) + [0, 4, 0]
  return world, cameras.look_at(eyes, target, up)


def seen(world, pose):
  """Places of points in a picture with the centre in the middle."""
  local = cameras.transform(np.tile(pose, (len(world), 1, 1)), world)
  return local[:, :2] / local[:, 2:], local


def footage(clips=3, seed=0):
  """Clips whose frames hold their own number."""
  rng = np.random.default_rng(seed)
  length = np.array([9, 3, 12][:clips])
  count = length.sum()
  path = np.tile(np.eye(4), (count, 1, 1))
  path[:, :3] = np.concatenate(
    [room(rng.integers(1 << 30))[1] for _ in range(count // 3)]
  )
  frames = np.zeros((count, SIZE, SIZE, 3), np.uint8)
  frames += np.arange(count, dtype=np.uint8)[:, None, None, None]
  return learned_training.Footage(
    frames,
    depth=np.zeros((count, (SIZE // 4) ** 2), np.float32),
    intrinsics=np.tile(np.float32([1, 1, 0.5, 0.5]), (count, 1)),
    world_to_camera=path,
    first=length.cumsum() - length,
    length=length,
  )


def test_the_way_back_is_the_inverse(config):
  config.train.update(windows=64, still=0.0)
  rows, motion = learned_training.sample(
    np.random.default_rng(0), footage(), config.train
  )
  pairs = list(
    zip(learned_training._A.tolist(), learned_training._B.tolist(), strict=True)
  )
  assert sorted(pairs) == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
  whole = np.tile(np.eye(4), (*motion.shape[:2], 1, 1))
  whole[:, :, :3] = motion
  for i, (a, b) in enumerate(pairs):
    back = whole[:, pairs.index((b, a))]
    np.testing.assert_allclose(
      whole[:, i] @ back, np.tile(np.eye(4), (64, 1, 1)), atol=1e-5
    )
  # A motion moves what the first camera sees to where the second does.
  path = footage().world_to_camera[rows]
  np.testing.assert_allclose(
    whole[:, 0] @ path[:, pairs[0][0]], path[:, pairs[0][1]], atol=1e-5
  )


def test_examples_are_of_one_clip_in_order_and_no_further_apart(config):
  config.train.update(windows=500, still=0.2)
  source = footage()
  rows, motion = learned_training.sample(
    np.random.default_rng(0), source, config.train
  )
  clip = np.searchsorted(source.first, rows, side='right') - 1
  assert (clip == clip[:, :1]).all()
  assert set(clip[:, 0]) == {0, 1, 2}
  gaps = np.diff(rows, axis=1)
  still = (gaps == 0).all(1)
  assert 50 < still.sum() < 150
  assert set(gaps[~still].ravel()) == {1, 2, 3}
  # Every frame has its turn.
  assert set(rows.ravel()) == set(range(24))
  np.testing.assert_allclose(
    motion[still, :, :, :3],
    np.tile(np.eye(3), (still.sum(), 6, 1, 1)),
    atol=1e-6,
  )
  length = np.linalg.norm(motion[still, :, :, 3], axis=-1)
  np.testing.assert_allclose(length, learned_training._STILL, rtol=1e-4)
  again, _ = learned_training.sample(
    np.random.default_rng(0), source, config.train
  )
  np.testing.assert_array_equal(again, rows)


def test_mirrored_pictures_have_the_mirrored_motion():
  world, path = room(0)
  (place_a, local_a), (place_b, _) = (seen(world, path[i]) for i in (0, 1))
  motion = cameras.compose(path[1], cameras.invert_pose(path[0]))
  columns = jnp.arange(4.0)[None, None, None, :]
  depth = jnp.broadcast_to(columns, (2, 3, 4, 4))
  pictures = jnp.broadcast_to(columns[..., None], (2, 3, 4, 4, 3))
  intrinsics = jnp.broadcast_to(jnp.array([0.9, 0.8, 0.4, 0.6]), (2, 3, 4))
  both = jnp.asarray(np.tile(motion, (2, 6, 1, 1)), jnp.float32)
  before = pictures, depth, intrinsics, both
  after = learned_training.mirror(*before, jnp.array([False, True]))
  for old, new in zip(before, after, strict=True):
    np.testing.assert_array_equal(new[0], old[0])
  np.testing.assert_array_equal(after[0][1], pictures[1, :, :, ::-1])
  np.testing.assert_array_equal(after[1][1], depth[1, :, :, ::-1])
  np.testing.assert_allclose(after[2][1, 0], [0.9, 0.8, 0.6, 0.6], rtol=1e-6)
  # Mirrored points of the first camera go to mirrored places of the second.
  turned = np.asarray(after[3][1, 0])
  moved = (local_a * [-1, 1, 1]) @ turned[:, :3].T + turned[:, 3]
  np.testing.assert_allclose(
    moved[:, :2] / moved[:, 2:], place_b * [-1, 1], atol=1e-5
  )
  assert np.abs(place_a - place_b).max() > 0.05


@pytest.mark.slow
def test_degrading_leaves_the_rest_alone_and_stays_in_range():
  rng = np.random.default_rng(0)
  pictures = jnp.asarray(rng.uniform(-1, 1, (64, 2, 16, 16, 3)), jnp.float32)
  out = np.asarray(learned_training.degrade(pictures, jax.random.key(0), 0.5))
  same = (out == np.asarray(pictures)).all((1, 2, 3, 4))
  assert 16 < same.sum() < 48
  assert np.abs(out).max() <= 1
  # Blur takes away most of what differs between neighbours.
  rough = np.abs(np.diff(out, axis=2)).mean((1, 2, 3, 4))
  assert np.median(rough[~same]) < 0.5 * np.median(rough[same])


def test_degrading_moves_nothing_far():
  """A bright spot stays where it was but for a pixel of warp."""
  pictures = jnp.full((32, 1, 17, 17, 3), -1.0).at[:, :, 8, 8].set(1.0)
  out = np.asarray(learned_training.degrade(pictures, jax.random.key(1), 1.0))
  light = (out + 1).sum(-1)[:, 0]
  light -= np.median(light, axis=(1, 2), keepdims=True)
  light = np.where(light > 0.5 * light.max((1, 2), keepdims=True), light, 0)
  for axis in (1, 2):
    profile = light.sum(3 - axis)
    place = (profile * np.arange(17)).sum(1) / profile.sum(1)
    assert np.median(np.abs(place - 8)) < 1


@pytest.mark.parametrize('name', gate_lib.CORRUPTIONS)
def test_corruptions_keep_shape_and_repeat_themselves(name):
  rng = np.random.default_rng(0)
  pictures = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
  out = gate_lib.corrupted(pictures, name, 0)
  assert (out.shape, out.dtype) == (pictures.shape, np.uint8)
  np.testing.assert_array_equal(out, gate_lib.corrupted(pictures, name, 0))
  assert np.array_equal(out, pictures) == (name == 'clean')


def test_footage_is_the_training_split(config):
  source = learned_training.load_footage(config)
  store = store_lib.open_split(config.data.dir, 'rooms', 'train')
  np.testing.assert_array_equal(source.length, store.num_frames)
  assert source.frames.shape == (len(store) * FRAMES, SIZE, SIZE, 3)
  assert source.depth.shape == (len(source.frames), (SIZE // 4) ** 2)
  assert 0.3 < np.median(source.depth) < 10
  last = source.first[-1]
  np.testing.assert_array_equal(
    source.world_to_camera[last:, :3],
    store.clip(len(store) - 1).world_to_camera,
  )


def test_held_out_scenes_are_of_the_test_split(config):
  scenes = gate_lib.held_out(config)
  store = store_lib.open_split(config.data.dir, 'rooms', 'test')
  assert [len(x) for x in scenes] == [2] * len(store)
  pictures, path = scenes[1][1]
  assert pictures.shape == (4, SIZE, SIZE, 3)
  np.testing.assert_array_equal(
    path[:, :3], store.clip(1).world_to_camera[[0, 2, 4, 7]]
  )


class Knowing(learned_oracle.Network):
  """Knows the way of clips whose first pixel is their number."""

  def paths(self, clips):
    truth = self.params['paths']
    return [
      (truth[x[0, 0, 0, 0]], np.full(len(x), 0.01 * x[0, 0, 0, 0]))
      for x in clips
    ]


def known_scenes(count=12):
  """Paths, and pictures that show their numbers; flat, so blur is harmless."""
  paths = np.tile(np.eye(4), (count, 3, 1, 1))
  paths[:, :, :3] = np.stack([room(i)[1] for i in range(count)])
  pictures = np.zeros((count, 3, 16, 16, 3), np.uint8)
  pictures += np.arange(count, dtype=np.uint8)[:, None, None, None, None]
  return paths, [[x] for x in zip(pictures, paths, strict=True)]


def test_the_gate_opens_to_who_knows(config, monkeypatch):
  monkeypatch.setattr(
    gate_lib,
    'CORRUPTIONS',
    {x: gate_lib.CORRUPTIONS[x] for x in ('clean', 'blur 1 px')},
  )
  paths, scenes = known_scenes()
  network = Knowing(learned_network.Config(), {'paths': paths})
  config.gate.windows = (3,)
  calibrated, gate = gate_lib.examine(network, scenes, config.gate)
  assert gate['passed'], gate['failures']
  assert gate['rows']['clean']['auc@30'] > 0.9
  assert gate['rows']['shuffled']['auc@30'] < 0.6
  # 95 % of the errors 0, 0.02, ... 0.1 of every second scene.
  np.testing.assert_allclose(calibrated.max_error, 0.095)
  assert gate['rows']['clean']['accepted'] == 5 / 6
  text = gate_lib.table(gate['rows'])
  assert re.search(r'clean +0\.833 ', text)


def test_the_gate_is_shut_to_who_fails_by_a_corruption(config):
  paths, scenes = known_scenes()
  config.gate.windows = (3,)
  # `darker` adds to the number, so that other paths come out.
  paths = np.tile(paths, (20, 1, 1, 1))
  network = Knowing(learned_network.Config(), {'paths': paths})
  _, gate = gate_lib.examine(network, scenes, config.gate)
  assert not gate['passed']
  assert any('by darker, more than' in x for x in gate['failures'])


def test_the_gate_is_shut_to_who_says_the_same_of_all(config):
  paths, scenes = known_scenes()
  same = np.tile(paths[:1], (256, 1, 1, 1))
  network = Knowing(learned_network.Config(), {'paths': same})
  config.gate.windows = (3,)
  config.gate.min_auc = 0.0
  _, gate = gate_lib.examine(network, scenes, config.gate)
  assert not gate['passed']
  assert any('above shuffled' in x for x in gate['failures'])


def run(*args):
  return commands.run('tools/train_pose_oracle.py', *args, XLA_FLAGS=QUICK)


@pytest.mark.slow
def test_the_command_trains_and_says_who_does_not_pass(data_dir, tmp_path):
  done = run(
    '--config=configs/pose_oracle.py',
    f'--workdir={tmp_path / "run"}',
    f'--config.data.dir={data_dir}',
    '--config.data.names=rooms',
    *(f'--config.model.{x}' for x in ('features=16', 'width=32', 'layers=1')),
    f'--config.model.image_size={SIZE}',
    '--config.model.head_dim=8',
    *(f'--config.train.{x}' for x in ('steps=3', 'windows=2', 'gap=3')),
    '--config.train.warmup_steps=1',
    '--config.train.log_every=2',
    '--config.gate.windows=(5, 8)',
    '--config.gate.frames=4',
    '--config.gate.min_auc=0.99',
  )
  assert done.returncode == 1, done.stderr
  for row in (*gate_lib.CORRUPTIONS, 'shuffled', 'constant'):
    assert re.search(rf'^{row} +\d\.\d+ ', done.stdout, re.MULTILINE)
  assert re.search(r'^3: loss .* CPU$', done.stdout, re.MULTILINE)
  assert 'below 0.99' in done.stdout
  assert 'gate NOT passed' in done.stdout
  with pytest.raises(UserError, match='not passed its gate .*below 0.99'):
    oracles.make('learned', weights=str(tmp_path / 'run'))


def test_the_command_needs_a_recipe_and_a_folder():
  done = run()
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1] == (
    'error: give --config; usage: python tools/train_pose_oracle.py '
    '--config=configs/pose_oracle.py --workdir=runs/pose_oracle (--help lists '
    'all flags)'
  )


def test_data_without_cameras_are_refused(config):
  config.data.names = 'squares'
  with pytest.raises(UserError, match='squares/train has no cameras'):
    learned_training.load_footage(config)


def test_missing_data_are_named(config):
  config.data.names = 'rooms,nowhere'
  with pytest.raises(UserError, match='nowhere'):
    learned_training.load_footage(config)


def test_what_does_not_fit_in_memory_is_refused(config):
  config.data.max_gib = 1e-6
  with pytest.raises(UserError, match='rooms at 16 pixels take .* GiB of mem'):
    learned_training.load_footage(config)


def test_windows_longer_than_all_clips_are_refused(config):
  config.gate.windows = (50,)
  with pytest.raises(UserError, match='0 test clips of rooms have 50 frames'):
    gate_lib.held_out(config)


def test_a_warm_up_longer_than_training_is_refused(config):
  config.train.warmup_steps = 3
  with pytest.raises(UserError, match='warmup_steps=3 must be below'):
    learned_training.fit(config, footage())
