"""The learned oracle: chaining, trust, its file, and what it refuses."""

import dataclasses
import hashlib

import jax
import numpy as np
import pytest
import safetensors.numpy
from scipy import ndimage

from xfactor.errors import UserError
from xfactor.evaluation import oracles
from xfactor.evaluation.oracles.learned import network as network_lib
from xfactor.evaluation.oracles.learned import oracle as oracle_lib

TINY = network_lib.Config(
  image_size=32, features=16, heads=1, head_dim=8, width=32, layers=1
)
PASSED = {'passed': True, 'failures': []}


@pytest.fixture(scope='module')
def network():
  params = jax.jit(network_lib.make(TINY).init)(jax.random.key(0))
  return oracle_lib.Network(TINY, jax.device_get(params), max_error=1e9)


@pytest.fixture(scope='module')
def folder(network, tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  oracle_lib.save(path / oracle_lib.FILE, network, PASSED)
  return path


def clip(count, seed=0, size=32):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, size, size, 3), np.uint8)


def true_motion(rng):
  """A motion and the same seen the other way round, as a perfect network."""
  turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
  turn *= np.linalg.det(turn)
  t = rng.normal(size=3)
  pose = np.concatenate([turn, t[:, None]], 1)
  return pose, np.concatenate([turn.T, -(turn.T @ t)[:, None]], 1)


def as_motion(poses, errors):
  t = poses[:, :, 3]
  length = np.linalg.norm(t, axis=-1, keepdims=True)
  log = np.log(np.broadcast_to(errors, (len(poses), 3)))
  return network_lib.Motion(
    poses[:, :, :3], t / length, np.log(length[:, 0]), log
  )


def test_the_file_holds_all_and_settings_tell_files_apart(
  network, folder, tmp_path
):
  data = (folder / oracle_lib.FILE).read_bytes()
  loaded = oracle_lib.load(folder)
  assert loaded.config == TINY
  assert loaded.max_error == network.max_error
  assert loaded.digest == hashlib.sha256(data).hexdigest()
  for name, value in network.params.items():
    np.testing.assert_array_equal(loaded.params[name], value)
  oracle = oracles.make('learned', weights=str(folder))
  by_file = oracles.make('learned', weights=str(folder / oracle_lib.FILE))
  assert oracle.settings() == by_file.settings()
  strict = dataclasses.replace(network, max_error=0.1)
  oracle_lib.save(tmp_path / oracle_lib.FILE, strict, PASSED)
  other = oracles.make('learned', weights=str(tmp_path))
  assert other.settings() != oracle.settings()
  assert [x.name for x in tmp_path.iterdir()] == [oracle_lib.FILE]


def test_paths_go_through_the_middle_frame(network, folder):
  frames = clip(5)
  (path, errors), *_ = network.paths([frames])
  np.testing.assert_array_equal(path[2], np.eye(4))
  assert errors[2] == 0
  # As the pairs alone.
  for i in (0, 1, 3, 4):
    (pair, error), *_ = network.paths([np.stack([frames[i], frames[2]])])
    np.testing.assert_allclose(pair[0], path[i], atol=1e-5)
    np.testing.assert_allclose(error[0], errors[i], rtol=1e-4)
  result = oracle_lib.Oracle(str(folder))(frames)
  np.testing.assert_allclose(
    result.world_to_camera, path @ np.linalg.inv(path[0]), atol=1e-9
  )
  np.testing.assert_array_equal(result.world_to_camera[0], np.eye(4))
  assert result.ok
  assert result.frame_ok.all()


def test_both_ways_make_one_motion():
  rng = np.random.default_rng(0)
  motions = [true_motion(rng) for _ in range(8)]
  there, back = map(np.stack, zip(*motions, strict=True))
  poses, errors = oracle_lib._mean(as_motion(there, 0.1), as_motion(back, 0.1))
  np.testing.assert_allclose(poses, there, atol=1e-9)
  np.testing.assert_allclose(errors, 0.1, rtol=1e-6)


def test_ways_that_do_not_agree_are_not_trusted():
  rng = np.random.default_rng(0)
  there, back = (x[None] for x in true_motion(rng))
  away = as_motion(back, 0.01)
  away = dataclasses.replace(away, direction=-away.direction)
  _, errors = oracle_lib._mean(as_motion(there, 0.01), away)
  np.testing.assert_allclose(errors, np.pi / 2)


def test_a_batch_gives_what_one_by_one_gives(folder):
  oracle = oracle_lib.Oracle(str(folder))
  # More pairs than a call of the program takes.
  shown = [clip(5, seed=i) for i in range(21)]
  together = oracle.batch([(x, None) for x in shown])
  for i in (0, 17, 20):
    alone = oracle(shown[i])
    np.testing.assert_array_equal(
      alone.world_to_camera, together[i].world_to_camera
    )
  assert not np.allclose(
    together[0].world_to_camera, together[2].world_to_camera
  )
  assert oracle.batch([]) == []


def test_pictures_of_any_size_become_the_networks(folder):
  large = clip(3, size=4).repeat(32, axis=1).repeat(32, axis=2)
  # Smooth, or else it would matter how pictures are made smaller.
  large = ndimage.gaussian_filter(large, (0, 12, 12, 0))
  small = large.reshape(3, 32, 4, 32, 4, 3).mean((2, 4)).round()
  wide = np.pad(large, [(0, 0), (0, 0), (10, 10), (0, 0)])
  oracle = oracle_lib.Oracle(str(folder))
  results = [
    oracle(x).world_to_camera for x in (small.astype(np.uint8), large, wide)
  ]
  np.testing.assert_array_equal(results[1], results[2])
  np.testing.assert_allclose(results[0], results[1], atol=0.1)


def test_what_is_expected_to_be_wrong_is_not_ok(network, tmp_path):
  frames = clip(5)
  (_, errors), *_ = network.paths([frames])
  worst = int(errors.argmax())
  # Between the two worst ones.
  limit = float(np.sort(errors)[-2:].mean())
  strict = dataclasses.replace(network, max_error=limit)
  oracle_lib.save(tmp_path / oracle_lib.FILE, strict, PASSED)
  # Whichever it is, not the first, which would take all others with it.
  order = np.arange(5) if worst else np.arange(5)[::-1]
  result = oracle_lib.Oracle(str(tmp_path))(frames[order])
  lost = int(np.flatnonzero(order == worst)[0])
  assert not result.ok
  assert (~result.frame_ok).nonzero()[0].tolist() == [lost]
  assert result.info['reasons'][0].startswith(f'frame {lost}: expected')
  result = oracle_lib.Oracle(str(tmp_path))(frames[order[::-1]])
  assert not result.frame_ok.any() if lost == 4 else not result.ok


@pytest.mark.parametrize('noise', [0, 1])
def test_still_pictures_have_no_path(folder, noise):
  frames = np.repeat(clip(1) // 2, 4, axis=0)
  frames = frames + clip(4, seed=1) % (noise + 1)
  result = oracle_lib.Oracle(str(folder))(frames.astype(np.uint8))
  assert not result.ok
  assert not result.frame_ok.any()
  assert 'differ' in result.info['reasons'][0]


def test_one_frame_is_refused(folder):
  with pytest.raises(UserError, match='1 frame'):
    oracle_lib.Oracle(str(folder))(clip(1))


def test_weights_must_be_named_and_be_there(tmp_path):
  with pytest.raises(UserError, match="needs the option 'weights'"):
    oracles.make('learned')
  with pytest.raises(UserError, match=r'does not exist; train it by python'):
    oracles.make('learned', weights=str(tmp_path))


def test_a_gate_that_was_not_passed_bars_the_way(network, tmp_path):
  gate = {'passed': False, 'failures': ['AUC@30 of clean clips is 0.100']}
  oracle_lib.save(tmp_path / oracle_lib.FILE, network, gate)
  with pytest.raises(UserError, match=r'not passed its gate \(AUC@30.*0\.100'):
    oracle_lib.Oracle(str(tmp_path))


def damaged(kind, network):
  params = {k: np.asarray(x) for k, x in network.params.items()}
  if kind == 'cut':
    return safetensors.numpy.save(params)[:-5]
  if kind == 'no safetensors':
    return b'nothing of the kind'
  if kind == 'empty':
    return b''
  return safetensors.numpy.save(params, metadata={'format': 'pt'})


@pytest.mark.parametrize('kind', ['cut', 'no safetensors', 'empty', 'foreign'])
def test_other_files_are_refused(network, tmp_path, kind):
  path = tmp_path / 'weights.safetensors'
  path.write_bytes(damaged(kind, network))
  with pytest.raises(UserError, match='weights.safetensors holds no pose orac'):
    oracle_lib.Oracle(str(path))


def test_weights_of_other_sizes_are_refused(network, tmp_path):
  path = tmp_path / oracle_lib.FILE
  config = dataclasses.replace(TINY, width=64)
  oracle_lib.save(path, dataclasses.replace(network, config=config), PASSED)
  with pytest.raises(UserError, match='embed_match/bias is .32,. instead of'):
    oracle_lib.Oracle(str(path))
