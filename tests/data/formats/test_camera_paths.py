"""Camera paths of other programs, written out by hand and round trips."""

import json

import numpy as np
import pytest

from xfactor.data.formats import camera_paths
from xfactor.errors import UserError
from xfactor.geometry import cameras

UP = np.array([0.0, 0.0, 1.0])
NAMES = (
  *('transforms.json', 'images.txt', 'a.npz', 'a.tum', 'a.kitti', 'a.txt'),
)


def path_of(count=5, seed=0):
  rng = np.random.default_rng(seed)
  eyes = rng.normal(size=(count, 3)) + [3, 0, 0]
  return cameras.look_at(eyes, 0 * eyes, UP)


@pytest.mark.parametrize('name', NAMES)
def test_round_trip(tmp_path, name):
  poses, focal = path_of(), np.linspace(0.7, 1.1, 5)
  camera_paths.write(tmp_path / name, poses, focal)
  found = camera_paths.read(tmp_path / name)
  np.testing.assert_allclose(found.world_to_camera, poses, atol=1e-12)
  if name in ('a.tum', 'a.kitti'):  # Have no lens.
    assert found.focal is None
  else:
    np.testing.assert_allclose(found.focal, focal, rtol=1e-12)


# A camera at (1, 2, 3) that looks along the world's x axis, y down.
OUTWARD = np.array([[0.0, 0, 1, 1], [0, 1, 0, 2], [-1, 0, 0, 3]])
ROOT = np.sqrt(0.5)


@pytest.mark.parametrize(
  ('name', 'text'),
  [
    ('a.txt', f'# time x y z qx qy qz qw\n0.5 1 2 3 0 {ROOT} 0 {ROOT}\n'),
    ('a.txt', ' '.join(map(str, OUTWARD.ravel())) + '\n'),
    (
      'a.txt',
      '5 1.0 1.5 .5 .5 0 0 0 0 -1 3 0 1 0 -2 1 0 0 -1\n',
    ),
    (
      'images.txt',
      f'1 {ROOT} 0 {-ROOT} 0 3 -2 -1 1 b 2.png\n\n',
    ),
  ],
)
def test_conventions_by_hand(tmp_path, name, text):
  if len(text.split()) == 19:
    lines = 'https://x/y\n' + text + text.replace('5', '6', 1)
  elif name == 'images.txt':
    lines = text + text.replace('b 2', 'b 10')
    (tmp_path / 'cameras.txt').write_text('1 SIMPLE_PINHOLE 40 30 45 20 15\n')
  else:
    lines = text + text.replace('#', '##')
  (tmp_path / name).write_text(lines)
  found = camera_paths.read(tmp_path / name)
  expected = cameras.invert_pose(OUTWARD)
  assert len(found.world_to_camera) == 2
  for pose in found.world_to_camera:
    np.testing.assert_allclose(pose, expected, atol=1e-6)
  if found.focal is not None:  # 45 of 30 pixels, or the longer of 1.0 and 1.5.
    np.testing.assert_allclose(found.focal, 1.5)


def test_transforms_are_opengl_and_camera_to_world(tmp_path):
  matrix = np.vstack([OUTWARD * [1, -1, -1, 1], [0, 0, 0, 1]]).tolist()
  frames = [{'file_path': f'{i}.png', 'transform_matrix': matrix} for i in '12']
  meta = {'w': 40, 'h': 30, 'fl_x': 45, 'cx': 20, 'cy': 15, 'frames': frames}
  (tmp_path / 'x.json').write_text(json.dumps(meta))
  found = camera_paths.read(tmp_path / 'x.json')
  np.testing.assert_allclose(
    found.world_to_camera[1], cameras.invert_pose(OUTWARD), atol=1e-12
  )
  np.testing.assert_allclose(found.focal, 1.5)


def row(count):
  return ' '.join(['0'] * (count - 1) + ['1']) + '\n'


@pytest.mark.parametrize(
  ('name', 'text', 'said'),
  [
    ('a.csv', '#t\n0,1,2,3,1,0,0,0\n', 'looks like comma-separated .*EuRoC'),
    ('a.txt', 2 * row(16), 'looks like 4 x 4 matrices'),
    ('a.txt', 8 * row(4), 'looks like 4 x 4 matrices'),
    ('a.txt', 2 * row(7), 'looks like TUM without times'),
    ('a.txt', 2 * row(19), 'RealEstate10K without its first line'),
    ('a.txt', 2 * row(5), 'is not a text of cameras; give 8 columns'),
    ('a.txt', 'hello\nworld\n', 'is not a text of cameras'),
    ('a.txt', 2 * '0 1 2 3 0 3 0 0\n', 'are no unit quaternions'),
    ('a.txt', 2 * '2 0 0 0 0 2 0 0 0 0 2 0\n', 'a scaled or transposed'),
    ('a.txt', 2 * '1 0 0 0 0 1 0 0 0 0 -1 0\n', 'a left-handed convention'),
    ('a.txt', '1 0 0 0 0 1 0 0 0 0 1 0\n', 'has 1 camera'),
    ('a.json', '{"camera_path": []}', "camera_path.json of nerfstudio's"),
    ('a.json', '{"frames": [{}]}', 'is not a transforms.json'),
    ('images.txt', '', 'read together with cameras.txt'),
  ],
)
def test_other_conventions_are_named(tmp_path, name, text, said):
  (tmp_path / name).write_text(text)
  with pytest.raises(UserError, match=said):
    camera_paths.read(tmp_path / name)


def test_arrays_of_another_shape(tmp_path):
  np.savez(tmp_path / 'a.npz', poses=np.zeros((2, 3, 4)))
  with pytest.raises(
    UserError, match=r'needs an array world_to_camera .*poses'
  ):
    camera_paths.read(tmp_path / 'a.npz')
  pixels = np.tile([300.0, 300, 160, 120], (5, 1))
  np.savez(tmp_path / 'b.npz', world_to_camera=path_of(), intrinsics=pixels)
  with pytest.raises(UserError, match='divided by the width and height'):
    camera_paths.read(tmp_path / 'b.npz')


def test_files_that_are_not_there_or_cannot_be_written(tmp_path):
  with pytest.raises(UserError, match='does not exist'):
    camera_paths.read(tmp_path / 'none.json')
  with pytest.raises(UserError, match='must end with one of .json'):
    camera_paths.write(tmp_path / 'a.xyz', path_of())
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='choose another place'):
    camera_paths.write(tmp_path / 'file/a.json', path_of())
