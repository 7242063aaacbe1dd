"""The ray caster: frames drawn together are those drawn one by one."""

import dataclasses

import numpy as np
import pytest

from xfactor.data.worlds.raycaster import lighting, render, tracing
from xfactor.data.worlds.rooms import room
from xfactor.geometry import cameras

SIZE = 20


@pytest.fixture(scope='module')
def baked():
  scene, _ = room.build_scene(0, 3, 16)
  return lighting.bake(scene, samples=1)


@pytest.fixture(scope='module')
def views(baked):
  """Intrinsics and poses of eyes all over the room; many see objects close."""
  rng = np.random.default_rng(0)
  scene = baked.scene
  half = scene.half[0] - 0.1
  eyes = scene.centre[0] + rng.uniform(-half, half, (400, 3))
  eyes = eyes[render.clearance(scene, eyes) > 0.05][:60]
  assert len(eyes) == 60
  targets = eyes + rng.normal(size=eyes.shape)
  up = np.array([0.3, -0.2, 1.0])
  poses = cameras.look_at(eyes, targets, up).astype(np.float32)
  intrinsics = np.full((60, 4), 0.5, np.float32)
  intrinsics[:, :2] = rng.uniform(0.4, 1.2, (60, 1))
  return intrinsics, poses


@pytest.fixture(scope='module')
def alone(baked, views):
  frames = [
    next(render.render(baked, k[None], pose[None], SIZE))
    for k, pose in zip(*views, strict=True)
  ]
  return _stacked(frames)


def _stacked(frames):
  return [np.stack(x) for x in zip(*frames, strict=True)]


def _assert_same(frames, expected):
  for a, b in zip(_stacked(frames), expected, strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_frames_drawn_together_are_those_drawn_one_by_one(baked, views, alone):
  rgb, depth = alone
  assert (rgb.shape, rgb.dtype) == ((60, SIZE, SIZE, 3), np.uint8)
  assert (depth.shape, depth.dtype) == ((60, SIZE, SIZE), np.float32)
  _assert_same(render.render(baked, *views, SIZE), alone)


@pytest.mark.parametrize('block', [5 * SIZE * 3, 5 * SIZE**2 * 2])
def test_tiles_do_not_show(baked, views, alone, block, monkeypatch):
  monkeypatch.setattr(render, '_TILE_SAMPLES', 5 * SIZE**2 * 7)
  monkeypatch.setattr(render, '_BLOCK_SAMPLES', block)
  _assert_same(render.render(baked, *views, SIZE), alone)


def test_nothing_is_seen_outside_its_rectangle(
  baked, views, alone, monkeypatch
):
  exact = render._rectangles

  def everywhere(corners, *args):
    x0, x1, y0, y1 = exact(corners, *args)
    hidden = (x0 >= x1) | (y0 >= y1)
    # Rectangles do save work.
    assert hidden.mean() > 0.4
    low, high = np.zeros_like(x0), np.full_like(x0, SIZE)
    return [low, high, low, high]

  monkeypatch.setattr(render, '_rectangles', everywhere)
  _assert_same(render.render(baked, *views, SIZE), alone)


def test_rays_miss_no_object_that_is_far_from_their_neighbours(baked):
  scene = baked.scene
  rng = np.random.default_rng(1)
  # Runs of neighbours, as the texels of light maps are.
  origins = scene.centre[0] + rng.uniform(-1, 1, (400, 3)) * scene.half[0]
  origins = np.repeat(origins, 16, 0) + rng.normal(size=(6400, 3)) * 0.1
  directions = np.repeat(rng.normal(size=(400, 3)), 16, 0)
  directions += rng.normal(size=(6400, 3)) * 0.1
  rays = [x.T.astype(np.float32) for x in (origins, directions)]
  tracer = tracing.Tracer(scene)
  t = tracer.nearest(*rays)
  assert 0.04 < (t < 1).mean() < 0.5
  everywhere = np.full((3, 1), np.inf)
  tracer._groups = [
    dataclasses.replace(group, low=-everywhere, high=everywhere)
    for group in tracer._groups
  ]
  np.testing.assert_array_equal(tracer.nearest(*rays), t)
  # A number of rays that is no multiple of a run, and none at all.
  np.testing.assert_array_equal(
    tracer.nearest(*(x[:, :5] for x in rays)), t[:5]
  )
  assert tracer.nearest(*(x[:, :0] for x in rays)).shape == (0,)


def test_as_many_intrinsics_as_poses(baked, views):
  intrinsics, poses = views
  with pytest.raises(ValueError, match='59 intrinsics, 60 poses'):
    next(render.render(baked, intrinsics[1:], poses, SIZE))
