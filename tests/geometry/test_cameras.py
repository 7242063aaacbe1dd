"""Properties of the camera algebra."""

import numpy as np
import pytest

from xfactor.geometry import cameras

UP = np.array([0.0, 0.0, 1.0])


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def _poses(rng, *shape):
  eyes = rng.normal(size=(*shape, 3))
  return eyes, cameras.look_at(eyes, eyes + rng.normal(size=(*shape, 3)), UP)


def test_look_at_is_a_rotation_with_opencv_axes(rng):
  eye, pose = _poses(rng, 5, 4)
  rotation = pose[..., :3]
  eye_ = np.broadcast_to(np.eye(3), (5, 4, 3, 3))
  np.testing.assert_allclose(
    rotation @ rotation.swapaxes(-1, -2), eye_, atol=1e-12
  )
  np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-12)
  np.testing.assert_allclose(cameras.camera_centre(pose), eye, atol=1e-12)
  # The image's x axis is level and its y axis points down.
  np.testing.assert_allclose(rotation[..., 0, 2], 0, atol=1e-12)
  assert (rotation[..., 1, 2] < 0).all()


def test_look_at_puts_the_target_in_the_middle(rng):
  eye, target = rng.normal(size=(2, 7, 3))
  pose = cameras.look_at(eye, target, UP)
  xy, depth = cameras.project(
    target, np.tile([1.2, 1.1, 0.5, 0.4], (7, 1)), pose
  )
  np.testing.assert_allclose(xy, np.tile([0.5, 0.4], (7, 1)), atol=1e-12)
  np.testing.assert_allclose(depth, np.linalg.norm(target - eye, axis=-1))


def test_inverse_and_composition(rng):
  a, b = _poses(rng, 6)[1], _poses(rng, 6)[1]
  points = rng.normal(size=(6, 3))
  identity = np.broadcast_to(np.eye(3, 4), (6, 3, 4))
  np.testing.assert_allclose(
    cameras.compose(a, cameras.invert_pose(a)), identity, atol=1e-12
  )
  np.testing.assert_allclose(
    cameras.transform(cameras.compose(a, b), points),
    cameras.transform(a, cameras.transform(b, points)),
    atol=1e-12,
  )


def test_rays_and_projection_are_inverse(rng):
  height, width = 6, 9
  pose = _poses(rng, 3)[1]
  intrinsics = np.array([0.9, 1.3, 0.45, 0.55]) + 0.1 * rng.normal(size=(3, 4))
  origins, directions = cameras.pixel_rays(intrinsics, pose, height, width)
  np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1)
  points = origins + directions * rng.uniform(0.5, 5, (3, height, width, 1))
  grid = (3, height, width)
  xy, depth = cameras.project(
    points,
    np.broadcast_to(intrinsics[:, None, None], (*grid, 4)),
    np.broadcast_to(pose[:, None, None], (*grid, 3, 4)),
  )
  u = np.broadcast_to((np.arange(width) + 0.5) / width, grid)
  v = np.broadcast_to((np.arange(height)[:, None] + 0.5) / height, grid)
  np.testing.assert_allclose(xy, np.stack([u, v], -1), atol=1e-9)
  assert (depth > 0).all()


def test_float32_stays_float32(rng):
  pose = _poses(rng, 2)[1].astype(np.float32)
  intrinsics = np.tile(np.float32([1, 1, 0.5, 0.5]), (2, 1))
  for array in (
    *cameras.pixel_rays(intrinsics, pose, 2, 2),
    cameras.compose(pose, cameras.invert_pose(pose)),
  ):
    assert array.dtype == np.float32


@pytest.mark.parametrize(
  ('image', 'shape', 'expected'),
  [
    ((48, 80), (1, 1), (0, 16, 48, 48)),
    ((81, 48), (7, 7), (16, 0, 48, 48)),
    ((48, 80), (24, 36), (0, 4, 48, 72)),
    ((80, 48), (24, 36), (24, 0, 32, 48)),
    ((48, 64), (240, 320), (0, 0, 48, 64)),
    ((100, 100), (3, 7), (28, 0, 43, 100)),
    ((100, 101), (1, 1000), (49, 0, 1, 101)),
  ],
)
def test_central_rectangles(image, shape, expected):
  assert cameras.centre_crop(*image, shape) == expected


@pytest.mark.parametrize('shape', [(1, 1), (24, 36), (50, 20)])
@pytest.mark.parametrize('size', [(48, 81), (80, 48)])
def test_intrinsics_of_a_crop_project_to_the_same_pixels(rng, size, shape):
  height, width = size
  pose = _poses(rng, 9)[1]
  whole = np.array([0.9, 1.3, 0.45, 0.55]) + 0.1 * rng.normal(size=(9, 4))
  crop = cameras.crop_intrinsics(whole, height, width, shape=shape)
  top, left, rows, columns = cameras.centre_crop(height, width, shape)
  points = rng.normal(size=(9, 3))
  before, _ = cameras.project(points, whole, pose)
  after, _ = cameras.project(points, crop, pose)
  np.testing.assert_allclose(
    after * [columns, rows], before * [width, height] - [left, top], atol=1e-9
  )
