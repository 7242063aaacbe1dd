"""Textures that slide: exact cameras, and any of them drawn again."""

import numpy as np
import pytest

from xfactor.data import images, rerender, sources
from xfactor.data.convert import run as convert_run
from xfactor.data.records import store as store_lib
from xfactor.data.sources import sliding
from xfactor.errors import UserError

SIZE, FRAMES = 32, 6


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  source = sliding.Source(
    scenes=4, frames=FRAMES, size=SIZE, test_fraction=0.0, paths='slide+rise'
  )
  convert_run.convert(source, folder, workers=0, quiet=True)
  return store_lib.open_split(folder, 'sliding', 'train')


def cameras(store, clip):
  poses = np.tile(np.eye(4), (FRAMES, 1, 1))
  poses[:, :3] = store.clip(clip).world_to_camera
  return poses


def frames(store, clip):
  found = store.clip_frames(clip, range(FRAMES))
  return np.stack([images.decode(frame) for frame in found]).astype(float)


def test_own_cameras_draw_the_same_frames(store):
  for clip in range(4):
    pictures, free = rerender.rerender(store, clip, cameras(store, clip), SIZE)
    assert free.all()
    assert np.abs(pictures - frames(store, clip)).mean() < 4


def test_a_move_of_one_pixel_shifts_the_picture_by_one():
  source = sliding.Source(scenes=1, size=SIZE)
  intrinsics = np.float32([[0.8, 0.8, 0.5, 0.5]] * 3)
  # Looks along x; right is -y, down is -z.
  pose = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]], np.float32)
  poses = np.stack([pose] * 3)
  pixel = 1 / (0.8 * SIZE)
  poses[1, 0, 3] = -pixel  # To the right.
  poses[2, 1, 3] = pixel  # Up.
  first, right, up = source._draw(0, intrinsics, poses).astype(int)
  assert np.abs(right[:, :-1] - first[:, 1:]).max() <= 1
  assert np.abs(up[1:] - first[:-1]).max() <= 1
  assert np.abs(right - first).mean() > 3
  assert first.std() > 30


def test_scenes_and_clips_are_determined():
  source = sliding.Source(scenes=3, frames=3, size=SIZE)
  items = source.items()
  (one,), (again,), (other,) = (source.clips(items[i]) for i in (1, 1, 2))
  assert one.frames == again.frames
  assert one.frames != other.frames
  # Cameras look straight at the plane and move only within its directions.
  np.testing.assert_allclose(one.world_to_camera[:, 2, 3], 0, atol=1e-6)
  np.testing.assert_allclose(np.ptp(one.world_to_camera[..., :3], 0), 0)


def test_cameras_that_do_not_see_the_plane_are_not_free(store):
  poses = cameras(store, 0)[:3]
  poses[1, 2, 3] -= 1.5  # Behind the plane.
  poses[2, :3] = np.diag([-1, 1, -1]) @ poses[2, :3]  # Looks back.
  assert rerender.is_free(store, 0, poses).tolist() == [True, False, False]


@pytest.mark.parametrize('paths', ['pan', 'slide+push', ''])
def test_other_paths_are_refused(paths):
  with pytest.raises(UserError, match='choose from slide, rise, slide.rise'):
    sources.make('sliding', paths=paths)
