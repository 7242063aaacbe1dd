"""Placing blurred pictures by rendering their scene, and refusing others."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from xfactor.data import rerender
from xfactor.data.convert import run as convert_run
from xfactor.data.records import store as store_lib
from xfactor.data.sources import synthetic
from xfactor.errors import UserError
from xfactor.evaluation import oracles
from xfactor.evaluation.oracles import base, cache
from xfactor.metrics import poses

SIZE, FRAMES = 32, 13
SHOWN = np.array([1, 6, 11])
# Rooms of which 16 dB leave more than colours: those alone have 12 and 15.
CLIPS = 2, 3


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  rooms = synthetic.Source(
    scenes=4, frames=FRAMES, size=SIZE, seed=5, test_fraction=1.0, paths='orbit'
  )
  convert_run.convert(rooms, folder, workers=0, quiet=True)
  return store_lib.open_split(folder, 'synthetic', 'test')


@pytest.fixture(scope='module')
def oracle():
  return oracles.make('rerender', starts=96)


def scene(store, clip=0):
  return base.Scene(store, clip, np.array([], int))


def orbit(store, clip):
  """Cameras of frames of a clip."""
  path = np.tile(np.eye(4), (len(SHOWN), 1, 1))
  path[:, :3] = store.clip(clip).world_to_camera[SHOWN]
  return path


def pan(store, clip):
  """Cameras that the clip does not have, of turns by 16 and 10 degrees."""
  path = np.repeat(orbit(store, clip)[1:2], 3, axis=0)
  turns = [[0, -0.14, 0], [0.05, 0, 0], [-0.1, 0.14, 0]]
  path[:, :3] = Rotation.from_rotvec(turns).as_matrix() @ path[:, :3]
  return path


def drawn(store, clip, path):
  pictures, free = rerender.rerender(store, clip, path, SIZE)
  assert free.all()
  return pictures


def blurred(pictures, decibels):
  """The pictures under the Gaussian that leaves so much of them."""

  def by(sigma):
    smooth = ndimage.gaussian_filter(np.float32(pictures), (0, sigma, sigma, 0))
    return np.rint(smooth).astype(np.uint8)

  def psnr(other):
    error = np.square(np.float32(other) - pictures).mean()
    return 10 * np.log10(255**2 / error)

  low, high = 0.1, SIZE
  for _ in range(20):
    middle = np.sqrt(low * high)
    if psnr(by(middle)) > decibels:
      low = middle
    else:
      high = middle
  return by(low)


@pytest.mark.slow
@pytest.mark.parametrize('decibels', [16, 18, 20])
def test_gate(store, oracle, decibels):
  """Medians below 2 degrees of rotation and 10 of direction; its scale."""
  rotation, direction, gaps, accepted = [], [], [], []
  for clip in CLIPS:
    for path in orbit(store, clip), pan(store, clip):
      pictures = blurred(drawn(store, clip, path), decibels)
      result = oracle(pictures, scene(store, clip))
      accepted.append(result.ok)
      scores = poses.score(base.rebase(path), result.world_to_camera)
      rotation.append(scores.rotation_degrees)
      centres = poses.camera_centres(base.rebase(path))
      if scores.has_translation:
        direction.append(scores.translation_degrees)
        found = poses.camera_centres(result.world_to_camera)
        gaps.append(np.linalg.norm(found - centres, axis=-1))
  assert np.mean(accepted) >= 0.75
  assert np.median(rotation) < 2
  assert np.median(direction) < 10
  assert np.median(gaps) < 0.1  # Metres.


@pytest.mark.slow
def test_refuses_what_the_scene_does_not_show(store, oracle):
  path = orbit(store, 0)
  pictures = drawn(store, 0, path)
  rng = np.random.default_rng(0)
  shuffled = rng.permuted(pictures.reshape(3, -1, 3), axis=1)
  mean = pictures.mean((1, 2), keepdims=True)
  nothing = {
    'another scene': drawn(store, 1, orbit(store, 1)),
    'another scene, blurred': blurred(drawn(store, 1, orbit(store, 1)), 18),
    'shuffled pixels': shuffled.reshape(pictures.shape),
    'mean colours': np.repeat(
      np.repeat(np.rint(mean).astype(np.uint8), SIZE, 1), SIZE, 2
    ),
    'noise': rng.integers(0, 256, pictures.shape, np.uint8),
  }
  for name, those in nothing.items():
    result = oracle(those, scene(store))
    assert not result.ok, name
    assert result.frame_ok.sum() <= 1, name
    assert len(result.info['reasons']) >= 2, name


def test_one_picture_of_elsewhere(store, oracle):
  path = orbit(store, 0)
  pictures = drawn(store, 0, path)
  pictures[1] = drawn(store, 1, orbit(store, 1))[1]
  result = oracle(pictures, scene(store))
  assert result.frame_ok.tolist() == [True, False, True]
  assert not result.ok
  assert 'frame 1: ' in result.info['reasons'][0]
  np.testing.assert_allclose(
    result.world_to_camera[2], base.rebase(path)[2], atol=0.05
  )


def test_frozen_camera(store, oracle):
  pictures = np.repeat(drawn(store, 0, orbit(store, 0))[:1], 3, axis=0)
  result = oracle(pictures, scene(store))
  assert result.ok
  np.testing.assert_allclose(
    result.world_to_camera, np.tile(np.eye(4), (3, 1, 1)), atol=1e-12
  )
  intrinsics = store.clip(0).intrinsics[:1]
  np.testing.assert_array_equal(
    result.intrinsics, np.float64(np.repeat(intrinsics, 3, 0))
  )


@pytest.mark.slow
def test_is_repeatable_and_kept(store, tmp_path):
  path = orbit(store, 0)
  pictures = blurred(drawn(store, 0, path), 20)
  oracle = oracles.make('rerender', starts=24, refined=1)
  first = cache.Cached(oracle, tmp_path)(pictures, scene(store))
  again, kept = (
    x.batch([(pictures, scene(store))])[0]
    for x in (oracle, cache.Cached(oracle, tmp_path))
  )
  for result in again, kept:
    np.testing.assert_array_equal(result.world_to_camera, first.world_to_camera)
  assert kept.info == first.info


def test_says_what_is_missing(store, oracle, monkeypatch):
  pictures = np.zeros((2, SIZE, SIZE, 3), np.uint8)
  with pytest.raises(UserError, match='converted data sets'):
    oracle(pictures, None)
  with pytest.raises(UserError, match='at least 2 frames'):
    oracle(pictures[:1], scene(store))
  monkeypatch.setattr(rerender, 'is_possible', lambda store: False)
  other = oracles.make('rerender', starts=23)
  with pytest.raises(UserError, match='choose another oracle: known_scene'):
    other(pictures, scene(store))
