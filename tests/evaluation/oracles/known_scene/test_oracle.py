"""Localising in rooms whose cameras and depth are known, and refusing to."""

import dataclasses
import functools
import io

import numpy as np
import pytest
from PIL import Image

from xfactor.data import images, sources
from xfactor.data.convert import run as convert_run
from xfactor.data.records import store as store_lib
from xfactor.data.sources import synthetic
from xfactor.errors import UserError
from xfactor.evaluation import oracles
from xfactor.evaluation.oracles import base, cache, degradation
from xfactor.evaluation.oracles.known_scene import oracle as oracle_lib
from xfactor.metrics import poses

cv2 = pytest.importorskip('cv2')

FRAMES, SIZE = 13, 128
SHOWN = np.array([2, 5, 8, 11])
# Wide pictures, from which the middle is cut.
HEIGHT = 96


def wide(data):
  """The rows of a square frame that a picture less high shows."""
  first = (SIZE - HEIGHT) // 2
  return data[first : first + HEIGHT]


@functools.cache
def room(number):
  rooms = synthetic.Source(scenes=2, frames=FRAMES, size=SIZE, seed=5)
  return next(rooms.clips(rooms.items()[number]))


@dataclasses.dataclass(frozen=True)
class Rooms(sources.Source):
  """Two rooms, square; one of them wide, with a lost camera and some sky."""

  name = 'rooms'
  description = 'Rooms.'

  def items(self):
    return [
      sources.Item(name, number, 'test')
      for name, number in (('room/0', 0), ('room/1', 1), ('wide', 0))
    ]

  def clips(self, item):
    clip = dataclasses.replace(room(item.payload), id=item.id)
    if item.id == 'wide':
      path, intrinsics = clip.world_to_camera.copy(), clip.intrinsics.copy()
      path[0, 0, 3] = np.nan
      intrinsics[:, [1, 3]] *= SIZE / HEIGHT
      intrinsics[:, 3] -= (SIZE - HEIGHT) / 2 / HEIGHT
      clip = dataclasses.replace(
        clip,
        height=HEIGHT,
        world_to_camera=path,
        intrinsics=intrinsics,
        frames=[
          images.encode_jpeg(wide(images.decode(x))) for x in clip.frames
        ],
        depth=[self.sky(x) for x in clip.depth],
      )
    yield clip

  def sky(self, data):
    with Image.open(io.BytesIO(data)) as file:
      depth = wide(np.array(file, np.uint16))
    depth[:10] = 0
    out = io.BytesIO()
    Image.fromarray(depth).save(out, 'PNG')
    return out.getvalue()


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  convert_run.convert(Rooms(), folder, workers=0, quiet=True)
  return store_lib.open_split(folder, 'rooms', 'test')


@pytest.fixture(scope='module')
def held_out():
  return oracles.make('known_scene', hold_out=True)


def scene(store, name='room/0', frames=SHOWN):
  return base.Scene(store, store.clip_ids().index(name), np.array(frames))


def shown(where, size=None):
  data = where.store.clip_frames(where.clip, where.frames)
  frames = [images.decode(x) for x in data]
  if size:
    frames = [images.centre_crop_resize(x, size) for x in frames]
  return np.stack(frames)


def truth(where):
  clip = where.store.clip(where.clip)
  return base.rebase(clip.world_to_camera[where.frames])


def assert_near(result, want, degrees, distance):
  """The poses are these, in metres."""
  assert result.ok
  assert result.frame_ok.all()
  np.testing.assert_array_equal(result.world_to_camera[0], np.eye(4))
  scores = poses.score(want, result.world_to_camera)
  assert scores.rotation_degrees.max() < degrees
  gap = poses.camera_centres(want) - poses.camera_centres(
    result.world_to_camera
  )
  assert np.linalg.norm(gap, axis=-1).max() < distance


@pytest.mark.slow
def test_localises_frames_that_it_has_not_seen(store, held_out):
  for name in 'room/0', 'room/1':
    where = scene(store, name)
    result = held_out(shown(where), where)
    assert_near(result, truth(where), degrees=0.3, distance=0.02)
    clip = store.clip(where.clip)
    np.testing.assert_array_equal(
      result.intrinsics, np.float64(clip.intrinsics[SHOWN])
    )
    assert result.info['reasons'] == []
    assert min(result.info['inliers']) > 30
    assert max(result.info['reprojection_pixels']) < 1
    assert min(result.info['correlation']) > 0.8


@pytest.mark.slow
def test_degradation(store, held_out):
  """Well under 1 degree of rotation and 5 of direction; worse when worse."""
  clips = [scene(store, name).clip for name in ('room/0', 'room/1')]
  result = degradation.measure(held_out, store, clips, num_frames=3, window=9)
  clean, *worse = (row.numbers for row in result.rows)
  assert (clean['ok_clips'], clean['ok_frames']) == (1, 1)
  assert clean['rotation_degrees'] < 0.15
  assert clean['translation_degrees'] < 1
  for row in worse:
    assert row['ok_frames'] >= 0.5
    assert row['rotation_degrees'] < 1
    assert row['translation_degrees'] < 5
  for row in worse[2], worse[5]:  # Of each kind the worst.
    assert row['rotation_degrees'] > clean['rotation_degrees']
    assert row['translation_degrees'] > clean['translation_degrees']


def test_alignment_is_what_places_blurred_pictures(store, held_out):
  where = scene(store)
  pictures = np.stack([cv2.GaussianBlur(x, (0, 0), 2) for x in shown(where)])
  features = oracles.make('known_scene', hold_out=True, refine=False)
  aligned, rough = (
    poses.score(truth(where), oracle(pictures, where).world_to_camera)
    for oracle in (held_out, features)
  )
  assert aligned.rotation_degrees.max() < 0.3
  assert aligned.rotation_degrees.mean() < 0.5 * rough.rotation_degrees.mean()


def test_believes_pictures_not_claims(store):
  """Frames that pass for others are posed where they were taken."""
  where, others = scene(store), scene(store, frames=SHOWN[::-1])
  result = oracles.make('known_scene')(shown(where), others)
  assert_near(result, truth(where), degrees=0.1, distance=0.01)


def test_frozen_camera(store, held_out):
  where = scene(store)
  pictures = np.repeat(shown(where)[:1], 3, axis=0)
  result = held_out(pictures, where)
  assert result.ok
  np.testing.assert_allclose(
    result.world_to_camera, np.tile(np.eye(4), (3, 1, 1)), atol=1e-12
  )


@pytest.mark.parametrize('size', [None, HEIGHT, 64])
def test_wide_frames_and_their_squares(store, held_out, size):
  where = scene(store, 'wide')
  result = held_out(shown(where, size), where)
  assert_near(result, truth(where), degrees=0.6, distance=0.04)
  fx, fy, cx, cy = result.intrinsics[0]
  assert cx == pytest.approx(0.5)
  assert cy == pytest.approx(0.5)
  assert fy == pytest.approx(fx * (SIZE / HEIGHT if size is None else 1))


def test_lost_camera_is_no_reference(store):
  where = scene(store, 'wide', [0, 1, 2])
  result = oracles.make('known_scene')(shown(where), where)
  assert result.ok
  known = scene(store, 'wide', [1, 2])
  relative = poses.relative_poses(result.world_to_camera[1:])[0]
  want = poses.relative_poses(truth(known))[0]
  np.testing.assert_allclose(relative, want, atol=5e-3)


def test_refuses_pictures_of_elsewhere(store, held_out):
  where = scene(store)
  pictures = shown(where)
  pictures[1] = shown(scene(store, 'room/1'))[1]
  result = held_out(pictures, where)
  assert not result.ok
  assert result.frame_ok.tolist() == [True, False, True, True]
  assert 'frame 1' in result.info['reasons'][0]
  assert 'inliers of the 12 needed' in result.info['reasons'][0]
  kept = [0, 2, 3]
  np.testing.assert_allclose(
    result.world_to_camera[kept], truth(where)[kept], atol=0.02
  )


def test_refuses_pictures_of_nothing(store, held_out):
  where = scene(store)
  noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
  result = held_out(np.stack([np.full_like(noise, 99), noise]), where)
  assert not result.ok
  assert not result.frame_ok.any()
  assert len(result.info['reasons']) >= 2


def test_is_repeatable_and_kept(store, tmp_path):
  where = scene(store)
  pictures = shown(where)
  oracle = oracles.make('known_scene', references=5)
  first = cache.Cached(oracle, tmp_path)(pictures, where)
  oracle_lib._world.cache_clear()
  again = oracle(pictures, where)
  kept = cache.Cached(oracle, tmp_path)(pictures, where)
  for result in again, kept:
    np.testing.assert_array_equal(result.world_to_camera, first.world_to_camera)
  assert kept.info == first.info


def test_says_what_is_missing(store, held_out, monkeypatch):
  where = scene(store)
  pictures = shown(where)
  with pytest.raises(UserError, match='converted data sets'):
    held_out(pictures, None)
  with pytest.raises(UserError, match='at least 2 frames'):
    held_out(pictures[:1], where)
  whole = scene(store, frames=np.arange(FRAMES))
  with pytest.raises(UserError, match='turn hold_out off'):
    held_out(pictures, whole)
  monkeypatch.setattr(oracle_lib, 'cv2', None)
  with pytest.raises(UserError, match=r"pip install -e '\.\[oracles\]'"):
    oracles.make('known_scene')


@pytest.mark.parametrize('lacks', ['depth', 'cameras'])
def test_says_what_the_data_lack(tmp_path, lacks):
  @dataclasses.dataclass(frozen=True)
  class Poor(synthetic.Source):
    def clips(self, item):
      for clip in super().clips(item):
        change = (
          {'depth': None}
          if lacks == 'depth'
          else {'world_to_camera': None, 'intrinsics': None}
        )
        yield dataclasses.replace(clip, **change)

  source = Poor(scenes=1, frames=3, size=16)
  convert_run.convert(source, tmp_path, workers=0, quiet=True)
  split = source.items()[0].split
  store = store_lib.open_split(tmp_path, 'synthetic', split)
  where = base.Scene(store, 0, np.arange(2))
  with pytest.raises(UserError, match=f'has no {lacks}'):
    oracles.make('known_scene')(shown(where), where)
