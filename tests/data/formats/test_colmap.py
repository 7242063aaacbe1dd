"""COLMAP's models, written here byte by byte as COLMAP writes them."""

import struct

import numpy as np
import pytest
from etils import epath

from xfactor.data.formats import colmap
from xfactor.errors import UserError

# In the order of their numbers, with COLMAP's names of the parameters.
MODELS = {
  'SIMPLE_PINHOLE': 'f cx cy',
  'PINHOLE': 'fx fy cx cy',
  'SIMPLE_RADIAL': 'f cx cy k',
  'RADIAL': 'f cx cy k1 k2',
  'OPENCV': 'fx fy cx cy k1 k2 p1 p2',
  'OPENCV_FISHEYE': 'fx fy cx cy k1 k2 k3 k4',
  'FULL_OPENCV': 'fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6',
  'FOV': 'fx fy cx cy omega',
  'SIMPLE_RADIAL_FISHEYE': 'f cx cy k',
  'RADIAL_FISHEYE': 'f cx cy k1 k2',
  'THIN_PRISM_FISHEYE': 'fx fy cx cy k1 k2 p1 p2 k3 k4 sx1 sy1',
  'RAD_TAN_THIN_PRISM_FISHEYE': (
    'fx fy cx cy k0 k1 k2 k3 k4 k5 p0 p1 s0 s1 s2 s3'
  ),
  'SIMPLE_DIVISION': 'f cx cy k',
  'DIVISION': 'fx fy cx cy k',
  'SIMPLE_FISHEYE': 'f cx cy',
  'FISHEYE': 'fx fy cx cy',
  'EUCM': 'fx fy cx cy alpha beta',
}
QUARTER = (0.5**0.5, 0, 0, 0.5**0.5)  # About z: x becomes y.
CAMERAS = [
  (7, 'SIMPLE_RADIAL', 640, 480, (500.0, 320.5, 239.0, 0.01)),
  (9, 'PINHOLE', 100, 50, (80.0, 82.0, 51.0, 24.0)),
]
# id, quaternion, translation, camera, name, number of 2D points
IMAGES = [
  (1, (1, 0, 0, 0), (0.5, -1.0, 2.0), 7, '001.jpg', 3),
  (4, QUARTER, (0.0, 0.0, 1.0), 9, 'left/a picture.png', 0),
  (5, (0.1, -0.7, 0.3, 0.9), (1.0, 2.0, 3.0), 7, '003.jpg', 1),
]


def binary_files(cameras, images):
  names = list(MODELS)
  first = struct.pack('<Q', len(cameras))
  for number, model, width, height, values in cameras:
    first += struct.pack('<IiQQ', number, names.index(model), width, height)
    first += struct.pack(f'<{len(values)}d', *values)
  second = struct.pack('<Q', len(images))
  for number, quaternion, translation, camera, name, points in images:
    second += struct.pack('<I7dI', number, *quaternion, *translation, camera)
    second += name.encode() + b'\0' + struct.pack('<Q', points)
    for i in range(points):
      second += struct.pack('<ddQ', i + 0.25, 2 * i, 2**64 - 1)
  return {'cameras.bin': first, 'images.bin': second}


def text_files(cameras, images):
  first = '# Camera list with one line of data per camera:\n'
  for number, model, width, height, values in cameras:
    parameters = ' '.join(f'{x:.17g}' for x in values)
    first += f'{number} {model} {width} {height} {parameters}\n'
  second = '# Image list with two lines of data per image:\n#   ID, QW\n'
  for number, quaternion, translation, camera, name, points in images:
    pose = ' '.join(f'{x:.17g}' for x in (*quaternion, *translation))
    second += f'{number} {pose} {camera} {name}\n'
    second += ' '.join(f'{i + 0.25} {2 * i} -1' for i in range(points)) + '\n'
  return {'cameras.txt': first.encode(), 'images.txt': second.encode()}


def write_model(folder, cameras, images, files=binary_files):
  folder.mkdir(parents=True, exist_ok=True)
  for name, data in files(cameras, images).items():
    (folder / name).write_bytes(data)


def read(folder):
  return colmap.read_model(epath.Path(folder))


def rotate(quaternion, point):
  """q p q*, by the product of quaternions."""
  s, v = quaternion[0], np.array(quaternion[1:])
  return (
    (s * s - v @ v) * point + 2 * (v @ point) * v + 2 * s * np.cross(v, point)
  )


@pytest.mark.parametrize('files', [binary_files, text_files])
def test_names_cameras_and_poses(tmp_path, files):
  write_model(tmp_path, CAMERAS, IMAGES, files)
  images = read(tmp_path)
  assert list(images) == ['001.jpg', 'left/a picture.png', '003.jpg']
  first, second, third = images.values()
  assert first.camera is third.camera
  assert first.camera.model == 'SIMPLE_RADIAL'
  assert (first.camera.width, first.camera.height) == (640, 480)
  np.testing.assert_allclose(
    first.camera.intrinsics,
    [500 / 640, 500 / 480, 320.5 / 640, 239 / 480],
    rtol=1e-15,
  )
  np.testing.assert_array_equal(first.camera.distortion, [0.01])
  np.testing.assert_allclose(
    second.camera.intrinsics, [0.8, 82 / 50, 0.51, 0.48], rtol=1e-15
  )
  assert second.camera.distortion.size == 0
  np.testing.assert_array_equal(
    first.world_to_camera, [[1, 0, 0, 0.5], [0, 1, 0, -1], [0, 0, 1, 2]]
  )
  np.testing.assert_allclose(
    second.world_to_camera,
    [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1]],
    atol=1e-15,
  )
  # Not a unit quaternion.
  quaternion = np.array(IMAGES[2][1]) / np.linalg.norm(IMAGES[2][1])
  point = np.array([0.3, -2.0, 5.0])
  np.testing.assert_allclose(
    third.world_to_camera @ [*point, 1],
    rotate(quaternion, point) + IMAGES[2][2],
    rtol=1e-12,
  )


@pytest.mark.parametrize('files', [binary_files, text_files])
@pytest.mark.parametrize('model', MODELS)
def test_camera_models(tmp_path, model, files):
  names = MODELS[model].split()
  values = dict(zip(names, np.arange(2.0, 2 + len(names)), strict=True))
  camera = (1, model, 20, 10, tuple(map(float, values.values())))
  images = [(1, (1, 0, 0, 0), (0, 0, 0), 1, 'a', 0)]
  write_model(tmp_path, [camera], images, files)
  camera = read(tmp_path)['a'].camera
  assert camera.model == model
  fx, fy = values.pop('fx', None), values.pop('fy', None)
  if fx is None:
    fx = fy = values.pop('f')
  cx, cy = values.pop('cx'), values.pop('cy')
  np.testing.assert_allclose(
    camera.intrinsics, [fx / 20, fy / 10, cx / 20, cy / 10]
  )
  np.testing.assert_array_equal(camera.distortion, list(values.values()))


def test_binary_comes_before_text(tmp_path):
  write_model(tmp_path, CAMERAS, IMAGES[:1])
  write_model(tmp_path, CAMERAS, IMAGES, text_files)
  assert len(read(tmp_path)) == 1
  (tmp_path / 'images.bin').unlink()
  assert len(read(tmp_path)) == 3


def test_no_model(tmp_path):
  assert read(tmp_path / 'nowhere') is None
  (tmp_path / 'cameras.bin').write_bytes(b'')
  assert read(tmp_path) is None


def test_empty_model(tmp_path):
  write_model(tmp_path, [], [])
  assert read(tmp_path) == {}


@pytest.mark.parametrize('name', ['cameras.bin', 'images.bin'])
def test_every_truncation_is_noticed(tmp_path, name):
  write_model(tmp_path, CAMERAS, IMAGES)
  data = (tmp_path / name).read_bytes()
  for length in (*range(len(data)), None):
    broken = data + b'\0' if length is None else data[:length]
    (tmp_path / name).write_bytes(broken)
    with pytest.raises(UserError, match=name):
      read(tmp_path)


@pytest.mark.parametrize('name', ['cameras.bin', 'images.bin'])
def test_garbage(tmp_path, name):
  write_model(tmp_path, CAMERAS, IMAGES)
  for data in (b'<html>' * 1000, b'\xff' * 1000):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=name):
      read(tmp_path)


@pytest.mark.parametrize(
  ('name', 'text', 'reason'),
  [
    ('cameras.txt', '1 PINHOLE 10 10 1 1 1', '4 parameters, not 3'),
    ('cameras.txt', '1 EQUIRECTANGULAR 10 10 1 1', 'unknown camera model'),
    ('cameras.txt', '1 PINHOLE 0 10 1 1 1 1', 'PINHOLE of 0 x 10'),
    ('cameras.txt', '1 PINHOLE', 'values to unpack'),
    ('images.txt', '1 1 0 0 0 0 0 0 8 a.jpg\n\n', 'no camera 8'),
    ('images.txt', '1 0 0 0 0 0 0 0 7 a.jpg\n\n', 'is not a pose'),
    ('images.txt', '1 1 0 0 0 nan 0 0 7 a.jpg\n\n', 'is not a pose'),
    ('images.txt', '1 1 0 0 0 0 0 7 a.jpg\n\n', 'is not a pose'),
    ('images.txt', '\xff\xfe', 'utf-8'),
    # Without the lines for points half of the images would vanish.
    ('images.txt', 2 * '1 1 0 0 0 0 0 0 7 a\n', 'after a must'),
  ],
)
def test_broken_text(tmp_path, name, text, reason):
  write_model(tmp_path, CAMERAS, IMAGES, text_files)
  (tmp_path / name).write_bytes(text.encode('latin-1'))
  with pytest.raises(UserError, match=reason) as caught:
    read(tmp_path)
  assert str(tmp_path / name) in str(caught.value)
  assert '\n' not in str(caught.value)


def test_image_of_an_unknown_camera(tmp_path):
  write_model(tmp_path, CAMERAS[:1], IMAGES)
  with pytest.raises(UserError, match=r'images\.bin .*no camera 9'):
    read(tmp_path)


def test_last_line_of_points_may_be_missing(tmp_path):
  write_model(tmp_path, CAMERAS, IMAGES, text_files)
  path = tmp_path / 'images.txt'
  path.write_text('1 1 0 0 0 0 0 0 7 a.jpg')
  assert list(read(tmp_path)) == ['a.jpg']
