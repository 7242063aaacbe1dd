"""Reads and writes camera paths in the formats of other programs.

  x.json        transforms.json of nerfstudio and instant-ngp (OpenGL's axes,
                camera to world)
  images.txt    COLMAP, with cameras.txt next to it (world to camera)
  x.npz         `world_to_camera`, [n, 3, 4] or [n, 4, 4], and optionally
                `intrinsics`, [n, 4] (world to camera)
  x.txt         by the number of columns: 8 of TUM (time, position, quaternion
                x y z w; camera to world), 12 of KITTI ([R|t] by rows; camera to
                world), or RealEstate10K's 19 below a line with a URL (world to
                camera)

To write, .tum and .kitti name the text formats; .txt is RealEstate10K's. Except
for transforms.json, camera axes are OpenCV's: x right, y down, z ahead.
"""

import json
import math
import os
import pathlib

import numpy as np
from etils import epath
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from xfactor.data import naming
from xfactor.data.formats import camera_files, colmap, npz
from xfactor.errors import UserError
from xfactor.geometry import cameras

_RATE = 30.0  # Frames per second of the times that are written.
_PIXELS = 512  # Side of the pictures that pixels are written for.
_SLACK = 1e-3  # Largest entry of R R^T - 1 that is rounding.
FORMATS = ('.json', 'images.txt', '.npz', '.tum', '.kitti', '.txt')


def _without_lens(world_to_camera: np.ndarray) -> camera_files.Cameras:
  return camera_files.Cameras(
    np.full((len(world_to_camera), 4), np.nan), world_to_camera
  )


def read(path: str | os.PathLike[str]) -> camera_files.Cameras:
  """Reads the cameras of a file, in its order (COLMAP: by picture name).

  Without a lens in the file, intrinsics are NaN.

  Raises:
    UserError: If the file cannot be read, or is of another convention.
  """
  path = epath.Path(path).expanduser()
  if not path.exists():
    raise UserError(
      f'{path} does not exist; give a file of cameras (transforms.json, '
      "COLMAP's images.txt, TUM, KITTI or RealEstate10K text, or .npz)"
    )
  suffix = path.suffix.lower()
  if suffix == '.json':
    found = _read_json(path)
  elif suffix == '.npz':
    found = _read_npz(path)
  elif path.name in ('images.txt', 'images.bin'):
    found = _read_colmap(path)
  else:
    found = _read_text(path)
  rotations = found.world_to_camera[:, :, :3]
  error = rotations @ rotations.swapaxes(1, 2) - np.eye(3)
  determinants = np.linalg.det(rotations)
  if not (abs(error).max(initial=0) < _SLACK and (determinants > 0).all()):
    mirrored = (determinants < 0).any()
    raise UserError(
      f'{path} holds matrices that are no rotations: they look like '
      + ('a left-handed' if mirrored else 'a scaled or transposed')
      + ' convention; convert them to right-handed rigid poses (OpenCV)'
    )
  if len(rotations) < 2:
    raise UserError(f'{path} has {len(rotations)} camera(s); a path needs two')
  return found


def _read_json(path: epath.Path) -> camera_files.Cameras:
  try:
    keys = json.loads(path.read_text()).keys()
  except (OSError, ValueError, AttributeError):
    keys = ()
  if 'camera_path' in keys:
    raise UserError(
      f"{path} looks like the camera_path.json of nerfstudio's viewer; give a "
      'transforms.json'
    )
  frames = camera_files.read_transforms(path)
  return camera_files.Cameras(
    np.stack([frame.camera.intrinsics for frame in frames]),
    np.stack([frame.world_to_camera for frame in frames]),
  )


def _read_npz(path: epath.Path) -> camera_files.Cameras:
  arrays = npz.read(path)
  poses = arrays.get('world_to_camera', np.zeros(0))
  if poses.ndim != 3 or poses.shape[1:] not in ((3, 4), (4, 4)):
    raise UserError(
      f'{path} needs an array world_to_camera of shape (n, 3, 4) or (n, 4, 4), '
      f'and has {", ".join(f"{k} {v.shape}" for k, v in arrays.items())}; save '
      'it under this name'
    )
  found = _without_lens(np.float64(poses[:, :3]))
  if 'intrinsics' not in arrays:
    return found
  intrinsics = np.float64(arrays['intrinsics'])
  if intrinsics.shape != found.intrinsics.shape or intrinsics.max() > 20:
    raise UserError(
      f'intrinsics of {path} must have the shape ({len(poses)}, 4): fx, fy, '
      'cx, cy, divided by the width and height of the picture'
    )
  return camera_files.Cameras(intrinsics, found.world_to_camera)


def _read_colmap(path: epath.Path) -> camera_files.Cameras:
  images = colmap.read_model(path.parent)
  if not images:
    raise UserError(
      f'{path} is read together with cameras{path.suffix}, and there is none '
      'next to it, or no image; put both files of the model in one folder'
    )
  named = sorted(images, key=naming.natural)
  return camera_files.Cameras(
    np.stack([images[name].camera.intrinsics for name in named]),
    np.stack([images[name].world_to_camera for name in named]),
  )


def _read_text(path: epath.Path) -> camera_files.Cameras:
  try:
    lines = [
      line.split()
      for line in path.read_text().splitlines()
      if line.strip() and not line.lstrip().startswith('#')
    ]
  except (OSError, ValueError) as e:
    raise UserError(
      f'{path} is not a text file of cameras ({e}); give another file'
    ) from e
  if len(lines) > 1 and len(lines[0]) == 1 and len(lines[1]) == 19:
    return camera_files.Cameras(*camera_files.read_realestate(path).cameras)
  try:
    rows = np.array(lines, np.float64)
    if not np.isfinite(rows).all():
      raise ValueError
  except ValueError:
    rows = np.zeros((0, 0))
  if rows.shape[1:] == (12,):  # KITTI.
    return _without_lens(cameras.invert_pose(rows.reshape(-1, 3, 4)))
  if rows.shape[1:] == (8,):  # TUM.
    quaternions = rows[:, 4:]
    if abs(np.linalg.norm(quaternions, axis=1) - 1).max() > 0.01:
      raise UserError(
        f'{path} has the 8 columns of TUM, but columns 5 to 8 are no unit '
        'quaternions; give time, position and quaternion (x y z w) per line'
      )
    turns = Rotation.from_quat(quaternions).as_matrix()
    poses = np.concatenate([turns, rows[:, 1:4, None]], 2)
    return _without_lens(cameras.invert_pose(poses))
  raise UserError(f'{path} {_looks(lines, rows)}')


def _looks(lines: list[list[str]], rows: np.ndarray) -> str:
  """Says what a text of another convention looks like, and the remedy."""
  known = '8 columns (TUM), 12 (KITTI), or a URL and 19 columns (RealEstate10K)'
  counts = sorted({len(line) for line in lines})
  if any(',' in word for line in lines[:3] for word in line):
    return (
      'looks like comma-separated values (EuRoC, for instance); write TUM '
      'text: time, position and quaternion (x y z w), with spaces'
    )
  if rows.shape[1:] == (16,) or counts == [4]:
    return (
      'looks like 4 x 4 matrices; write KITTI text: the first three rows of a '
      'camera-to-world matrix on a line'
    )
  if rows.shape[1:] == (7,):
    return 'looks like TUM without times; add a first column with times'
  if counts == [19]:
    return (
      'looks like RealEstate10K without its first line; add a line with the '
      'URL of the video'
    )
  return f'is not a text of cameras; give {known}'


def write(
  path: str | os.PathLike[str],
  world_to_camera: Float[np.ndarray, 'n 3 4'],
  focal: float | Float[np.ndarray, ' n'] = 1.0,
) -> None:
  """Writes cameras; the name chooses the format, see the module.

  Times are of 30 frames per second, pixels are of square pictures.

  Args:
    path: File to write.
    world_to_camera: Poses.
    focal: Focal length of square pictures, divided by their side.

  Raises:
    UserError: If there is no format of this name, or it cannot be written.
  """
  path = epath.Path(path).expanduser()
  check_name(path)
  focal = np.broadcast_to(np.float64(focal), len(world_to_camera))
  half = np.full_like(focal, 0.5)
  intrinsics = np.stack([focal, focal, half, half], 1)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.npz':
      with path.open('wb') as file:
        np.savez(file, world_to_camera=world_to_camera, intrinsics=intrinsics)
      return
    path.write_text(_text(path, world_to_camera, intrinsics))
    if path.name == 'images.txt':
      path.with_name('cameras.txt').write_text(_colmap_cameras(intrinsics))
  except OSError as e:
    raise UserError(
      f'cannot write {path} ({e.strerror}); choose another place'
    ) from e


def check_name(path: str | os.PathLike[str]) -> None:
  """Raises UserError if no format belongs to the name of a file to write."""
  if pathlib.PurePath(path).suffix.lower() not in FORMATS:
    raise UserError(
      f'{path}: the format of cameras follows from the name, which must end '
      f'with one of {", ".join(FORMATS)}'
    )


def _text(path: epath.Path, poses: np.ndarray, intrinsics: np.ndarray) -> str:
  outward = cameras.invert_pose(poses)
  times = np.arange(len(poses)) / _RATE
  if path.suffix == '.json':
    return _transforms(outward, intrinsics)
  if path.suffix == '.kitti':
    return _lines(outward.reshape(-1, 12))
  if path.suffix == '.tum':
    turns = Rotation.from_matrix(outward[:, :, :3]).as_quat(canonical=True)
    return _lines(np.column_stack([times, outward[:, :, 3], turns]))
  if path.name == 'images.txt':
    turns = Rotation.from_matrix(poses[:, :, :3]).as_quat(
      canonical=True, scalar_first=True
    )
    rows = zip(turns.tolist(), poses[:, :, 3].tolist(), strict=True)
    return ''.join(
      f'{i} {" ".join(map(repr, [*turn, *moved]))} {i} {i:06d}.png\n\n'
      for i, (turn, moved) in enumerate(rows, 1)
    )
  rows = np.column_stack(
    [intrinsics, np.zeros((len(poses), 2)), poses.reshape(-1, 12)]
  )
  stamps = np.round(times * 1e6).astype(int).tolist()
  return 'https://localhost/xfactor\n' + ''.join(
    f'{stamp} {line}\n'
    for stamp, line in zip(stamps, _lines(rows).splitlines(), strict=True)
  )


def _lines(rows: np.ndarray) -> str:
  return ''.join(' '.join(map(repr, row)) + '\n' for row in rows.tolist())


def _colmap_cameras(intrinsics: np.ndarray) -> str:
  return ''.join(
    f'{i} SIMPLE_PINHOLE {_PIXELS} {_PIXELS} {f * _PIXELS!r} '
    f'{_PIXELS / 2} {_PIXELS / 2}\n'
    for i, f in enumerate(intrinsics[:, 0].tolist(), 1)
  )


def _transforms(outward: np.ndarray, intrinsics: np.ndarray) -> str:
  frames = []
  for i, (pose, lens) in enumerate(zip(outward, intrinsics, strict=True), 1):
    matrix = np.vstack([pose * camera_files.FLIP, [0, 0, 0, 1]])
    pixels = float(lens[0]) * _PIXELS
    frames.append(
      {
        'file_path': f'images/{i:06d}.png',
        'fl_x': pixels,
        'fl_y': pixels,
        'transform_matrix': matrix.tolist(),
      }
    )
  shared = {
    'camera_model': 'PINHOLE',
    'w': _PIXELS,
    'h': _PIXELS,
    'cx': _PIXELS / 2,
    'cy': _PIXELS / 2,
    'camera_angle_x': 2 * math.atan(0.5 / float(intrinsics[0, 0])),
  }
  return json.dumps(shared | {'frames': frames}, indent=1) + '\n'
