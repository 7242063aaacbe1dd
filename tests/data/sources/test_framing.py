"""Cameras fit their pictures, whatever is done to the pictures."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.data import pictures
from xfactor.data import images
from xfactor.data.formats import lens
from xfactor.data.sources import framing
from xfactor.geometry import cameras

HEIGHT, WIDTH = 70, 100
POINT = np.array([0.1, -0.2, 0.3])
POSE = np.column_stack([np.eye(3), [0.05, 0.1, 1.5]])
OPTIONS = {'quality': 95, 'max_megapixels': 9, 'undistort': None}
MODELS = {
  'PINHOLE': (80.0, 82, 47, 37),
  'OPENCV': (80.0, 82, 47, 37, -0.2, 0.02, 0.001, 0.002),
  'OPENCV_FISHEYE': (60.0, 60, 47, 37, 0.02, 0, 0, 0),
}


def camera_of(model, width=WIDTH, height=HEIGHT):
  return lens.make_camera(model, width, height, MODELS[model])


def stored(camera, orientation=1, scale=1.0):
  """A picture of the point as the camera sees it, and what EXIF says."""
  x, y, z = POSE[:, :3] @ POINT + POSE[:, 3]
  (seen,) = lens.distort(camera, np.array([[x / z, y / z]]))
  size = np.array([camera.width, camera.height]) * scale
  at = (seen * camera.intrinsics[:2] + camera.intrinsics[2:]) * size
  exif, out = Image.Exif(), io.BytesIO()
  exif[0x0112] = orientation
  width, height = size.astype(int)
  Image.fromarray(pictures.spot(height, width, at)).save(
    out, 'JPEG', quality=95, exif=exif
  )
  return out.getvalue()


def off(framed):
  """Pixels between the spot and where the camera sees the point."""
  seen, _ = cameras.project(POINT, framed.intrinsics, framed.world_to_camera)
  picture = framed.picture
  at = pictures.find_spot(
    images.encode_jpeg(images.decode(picture.data), quality=100)
  )
  assert np.linalg.det(framed.world_to_camera[:, :3]) == pytest.approx(1)
  return abs((seen - at) * [picture.width, picture.height]).max()


@pytest.mark.parametrize('size', [64, None])
@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('model', MODELS)
def test_cameras_turn_with_their_pictures(model, orientation, size):
  camera = camera_of(model)
  data = stored(camera, orientation)
  framed = framing.frame(data, camera, POSE, size=size, **OPTIONS)
  assert off(framed) < 0.5
  assert framed.turned == (orientation in (3, 6, 8))
  assert framed.undistorted == (model == 'OPENCV_FISHEYE')
  # Upright as people see it, unless that would mirror it.
  if framed.turned and model == 'PINHOLE':
    fit = images.fit(data, size)
    np.testing.assert_array_equal(
      images.decode(framed.picture.data), images.decode(fit.data)
    )


@pytest.mark.parametrize('orientation', [5, 6, 7, 8])
def test_cameras_of_turned_pictures(orientation):
  """They were found with the turned pictures: only their sides say so."""
  camera = camera_of('PINHOLE', HEIGHT, WIDTH)
  shown = Image.open(io.BytesIO(stored(camera)))
  back = {5: 'TRANSPOSE', 6: 'ROTATE_90', 7: 'TRANSVERSE', 8: 'ROTATE_270'}
  out, exif = io.BytesIO(), Image.Exif()
  exif[0x0112] = orientation
  turned = shown.transpose(Image.Transpose[back[orientation]])
  turned.save(out, 'JPEG', quality=95, exif=exif)
  framed = framing.frame(out.getvalue(), camera, POSE, size=64, **OPTIONS)
  assert off(framed) < 0.5
  assert not framed.turned


@pytest.mark.parametrize('undistort', [True, False, None])
def test_distortion_on_request(undistort):
  camera = camera_of('OPENCV')
  options = OPTIONS | {'undistort': undistort}
  framed = framing.frame(stored(camera), camera, POSE, size=None, **options)
  assert framed.undistorted == bool(undistort)
  if undistort:
    assert off(framed) < 0.5


@pytest.mark.parametrize('scale', [0.5, 2.0, 3.0])
@pytest.mark.parametrize('model', MODELS)
def test_pictures_of_another_size(scale, model):
  camera = camera_of(model)
  framed = framing.frame(
    stored(camera, 6, scale), camera, POSE, size=32, **OPTIONS
  )
  assert off(framed) < 0.5


@pytest.mark.parametrize('size', [(HEIGHT, WIDTH), (110, 70), (100, 75)])
def test_cameras_of_another_shape(size):
  data = stored(camera_of('PINHOLE'))
  camera = camera_of('PINHOLE', *size)
  with pytest.raises(framing.CameraError, match='the picture has 100 x 70'):
    framing.frame(data, camera, POSE, size=32, **OPTIONS)
