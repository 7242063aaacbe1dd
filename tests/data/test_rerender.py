"""Freedoom drawn anew; `test_synthetic.py` has the rooms."""

import importlib.util

import numpy as np
import pytest
from absl import logging

from xfactor.data import files, images, rerender
from xfactor.data.convert import run as convert_run
from xfactor.data.records import store as store_lib
from xfactor.data.sources import vizdoom
from xfactor.data.worlds.doom import engine as engine_lib
from xfactor.data.worlds.doom import flight_path
from xfactor.data.worlds.doom import level as level_lib
from xfactor.geometry import wander

pytest.importorskip('vizdoom')

SIZE, FRAMES = 48, 6


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  source = vizdoom.Source(
    walks=3,
    frames=FRAMES,
    size=SIZE,
    paths='pan+tilt+roll+slide+rise+push',
    turn=10,
    with_depth=False,
  )
  convert_run.convert(source, folder, workers=0, quiet=True)
  return folder


@pytest.fixture(scope='module')
def store(folder):
  return store_lib.open_split(folder, 'vizdoom', 'train')


def cameras(store, clip):
  poses = np.tile(np.eye(4), (FRAMES, 1, 1))
  poses[:, :3] = store.clip(clip).world_to_camera
  return poses


def frames(store, clip):
  found = store.clip_frames(clip, range(FRAMES))
  return np.stack([images.decode(frame) for frame in found]).astype(float)


def psnr(a, b):
  return -10 * np.log10(np.square((a - b) / 255).mean((1, 2, 3)))


def test_own_cameras_draw_the_same_frames(store):
  assert rerender.is_possible(store)
  tilt = []
  for clip in range(len(store)):
    poses = cameras(store, clip)
    pictures, free = rerender.rerender(store, clip, poses, SIZE)
    assert free.all()
    assert (psnr(pictures, frames(store, clip)) > 35).all()
    tilt.append(wander.angles(poses[:, :3, :3])[1])
  # And not of level views only.
  assert np.degrees(np.abs(tilt).max()) > 12


def test_drawn_smaller_as_frames_are(store):
  poses = cameras(store, 1)
  whole, _ = rerender.rerender(store, 1, poses, SIZE)
  small, _ = rerender.rerender(store, 1, poses, 16)
  for a, b in zip(whole, small, strict=True):
    np.testing.assert_array_equal(images.centre_crop_resize(a, 16), b)


def test_a_turned_camera_shows_the_frame_turned(store):
  """What both see of two views from one place is the same, but for pixels."""
  pose = cameras(store, 0)[:1]
  (before,) = frames(store, 0)[:1]
  yaw, pitch, roll = wander.angles(pose[:, :3, :3])
  turned = pose.copy()
  change = wander.rotations(yaw + 0.2, pitch - 0.2, roll + 0.3)
  turned[:, :3] = change @ pose[:, :3, :3].swapaxes(1, 2) @ pose[:, :3]
  (after,), free = rerender.rerender(store, 0, turned, SIZE)
  assert free.all()
  fx, fy, cx, cy = store.clip(0).intrinsics[0]
  y, x = (np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE
  rays = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)], -1)
  rays = rays @ turned[0, :3, :3] @ pose[0, :3, :3].T
  u = np.floor((rays[..., 0] / rays[..., 2] * fx + cx) * SIZE).astype(int)
  v = np.floor((rays[..., 1] / rays[..., 2] * fy + cy) * SIZE).astype(int)
  inside = (u >= 0) & (u < SIZE) & (v >= 0) & (v < SIZE)
  assert 0.3 < inside.mean() < 0.8
  moved = before[v[inside], u[inside]]
  error = np.abs(moved - after[inside]).mean()
  assert error < 0.5 * np.abs(before[inside] - after[inside]).mean()


def test_cameras_that_see_nothing(store):
  poses = cameras(store, 1)
  yaw, _, _ = wander.angles(poses[:, :3, :3])
  poses[1, :3, 3] += 500  # Far outside.
  centre = -poses[2, :3, :3].T @ poses[2, :3, 3]
  up = wander.rotations(yaw[2:3], np.array([1.0]), np.zeros(1))[0]
  poses[2, :3] = np.column_stack([up, -up @ centre])
  poses[3, :3, 3] -= 10 * poses[3, :3, 2]  # Above the ceiling.
  poses[4, :3, 3] += 10 * poses[4, :3, 2]  # Under the floor.
  expected = [True, False, False, False, False, True]
  assert rerender.is_free(store, 1, poses).tolist() == expected
  pictures, free = rerender.rerender(store, 1, poses, SIZE)
  assert free.tolist() == expected
  assert pictures.any((1, 2, 3)).tolist() == expected
  pictures, free = rerender.rerender(store, 1, poses[1:2], SIZE)
  assert not free.any()
  assert pictures.shape == (1, SIZE, SIZE, 3)


def test_nothing_beside_walls_is_free(store):
  """From a camera of the clip on, straight ahead until the wall."""
  pose = cameras(store, 0)[:1]
  ahead = np.repeat(pose, 400, 0)
  ahead[:, 2, 3] -= np.arange(400) * 0.05
  free = rerender.is_free(store, 0, ahead)
  assert free[0]
  stop = int(np.argmin(free))
  assert stop > 0
  _, level = level_lib.load(*vizdoom._level_of(store.clip(0)))
  _, position = vizdoom._cameras(ahead[:stop, :3])
  assert level_lib.clearance(level, position).min() >= flight_path.MIN_CLEARANCE


def test_the_engine_stays_open(store):
  rerender.rerender(store, 0, cameras(store, 0)[:1], SIZE)
  started = engine_lib._engine.cache_info().misses
  rerender.rerender(store, 0, cameras(store, 0)[1:2], SIZE)
  assert engine_lib._engine.cache_info().misses == started


def test_an_engine_that_failed_is_closed(store, monkeypatch):
  poses = cameras(store, 0)[:1]
  before, _ = rerender.rerender(store, 0, poses, SIZE)
  closed = []
  engine = engine_lib._engine(*vizdoom._level_of(store.clip(0)), SIZE)
  with monkeypatch.context() as patch:
    patch.setattr(engine, '_see', lambda *_: closed.append(engine) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
      rerender.rerender(store, 0, poses, SIZE)
  assert closed
  assert engine_lib._engine.cache_info().currsize == 0
  after, _ = rerender.rerender(store, 0, poses, SIZE)
  np.testing.assert_array_equal(before, after)


def test_other_versions_are_not_drawn_anew(folder, monkeypatch):
  read = files.read_json
  monkeypatch.setattr(
    files, 'read_json', lambda x: {**read(x), 'source_version': '0.9.0'}
  )
  other = store_lib.open_split(folder, 'vizdoom', 'train')
  assert not rerender.is_possible(other)
  with pytest.raises(ValueError, match='vizdoom cannot be rendered again'):
    rerender.rerender(other, 0, cameras(other, 0), SIZE)


def test_without_the_package(folder, monkeypatch):
  said = []
  monkeypatch.setattr(
    logging, 'warning', lambda text, *values: said.append(text % values)
  )
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  other = store_lib.open_split(folder, 'vizdoom', 'train')
  assert not rerender.is_possible(other)
  assert not rerender.is_possible(other)
  (line,) = said
  assert "pip install -e '.[vizdoom]'" in line
