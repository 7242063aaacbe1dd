"""Lens models against COLMAP's own library, and pictures without distortion."""

import numpy as np
import pycolmap
import pytest

from tests.data import pictures
from tests.data.formats import test_colmap
from xfactor.data.formats import lens
from xfactor.geometry import cameras

# Strong but plausible values.
VALUES = {
  **{'k': -0.1, 'k0': 0.02, 'k1': -0.12, 'k2': 0.03, 'k3': 0.004, 'k4': -0.002},
  **{'k5': 0.001, 'k6': 0.002, 'p0': 0.003, 'p1': -0.002, 'p2': 0.004},
  **{'s0': 0.001, 's1': -0.002, 's2': 0.003, 's3': 0.002, 'sx1': 0.002},
  **{'sy1': -0.003, 'omega': 0.8, 'alpha': 0.6, 'beta': 1.1},
}
WIDTH, HEIGHT = 160, 100


def parameters(model, focal=80.0):
  pinhole = {
    'f': focal,
    'fx': focal,
    'fy': 1.05 * focal,
    'cx': 82.0,
    'cy': 47.0,
  }
  return [
    (pinhole | VALUES)[name] for name in test_colmap.MODELS[model].split()
  ]


def camera_of(model, **options):
  return lens.make_camera(model, WIDTH, HEIGHT, parameters(model, **options))


@pytest.mark.parametrize('model', test_colmap.MODELS)
def test_every_model_is_that_of_colmap(model):
  camera = camera_of(model)
  xy = np.random.default_rng(0).uniform(-0.8, 0.8, (50, 2))
  theirs = pycolmap.Camera(
    model=model, width=WIDTH, height=HEIGHT, params=parameters(model)
  ).img_from_cam(np.concatenate([xy, np.ones((50, 1))], 1))
  size = np.array([WIDTH, HEIGHT])
  found = lens.distort(camera, xy) * camera.intrinsics[:2]
  np.testing.assert_allclose(
    (found + camera.intrinsics[2:]) * size, theirs, atol=1e-6
  )
  assert camera.distorted == ('PINHOLE' not in model)


@pytest.mark.parametrize(
  'model', ['SIMPLE_RADIAL', 'OPENCV', 'OPENCV_FISHEYE', 'FOV', 'EUCM']
)
@pytest.mark.parametrize('size', [64, None])
def test_straight_again(model, size):
  """Spots are where the pinhole camera of the new picture sees them."""
  camera = camera_of(model)
  for direction in ((0.05, -0.1), (-0.3, 0.2), (0.25, 0.3)):
    (seen,) = lens.distort(camera, np.array([direction]))
    at = seen * camera.intrinsics[:2] + camera.intrinsics[2:]
    rgb = pictures.spot(HEIGHT, WIDTH, at * [WIDTH, HEIGHT])
    new, intrinsics = lens.undistort(rgb, camera, size)
    assert new.shape == ((size, size, 3) if size else rgb.shape)
    expected = direction * intrinsics[:2] + intrinsics[2:]
    light = new[..., 0].astype(float)
    light[light < 25] = 0
    v, u = np.mgrid[: new.shape[0], : new.shape[1]] + 0.5
    found = np.array([(u * light).sum(), (v * light).sum()]) / light.sum()
    assert abs(found - expected * new.shape[1::-1]).max() < 0.3


@pytest.mark.parametrize('k', [-0.3, -0.1, 0.1, 0.4])
def test_no_edge_of_the_picture_shows(k):
  camera = lens.make_camera('SIMPLE_RADIAL', 160, 100, [90.0, 80.0, 50.0, k])
  white = np.full((100, 160, 3), 255, np.uint8)
  white[:2] = white[-2:] = white[:, :2] = white[:, -2:] = 0
  new, intrinsics = lens.undistort(white, camera, None)
  assert new[6:-6, 6:-6].min() == 255
  # Not more is cut off than need be.
  zoom = intrinsics[0] * 160 / 90
  assert 1 <= zoom < 1.5
  assert (zoom == 1) == (k < 0)


def test_without_distortion_nothing_changes():
  camera = lens.make_camera('OPENCV', 160, 100, [90.0, 91, 80, 50, 0, 0, 0, 0])
  rgb = pictures.waves(100, 160, 1)
  new, intrinsics = lens.undistort(rgb, camera, None)
  np.testing.assert_array_equal(new, rgb)
  np.testing.assert_allclose(intrinsics, camera.intrinsics)
  _, intrinsics = lens.undistort(rgb, camera, 50)
  expected = cameras.crop_intrinsics(camera.intrinsics, 100, 160)
  np.testing.assert_allclose(intrinsics, expected)
  assert not camera.distorted
