"""Reads camera files: the text of RealEstate10K, and transforms.json."""

import json
import os
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from xfactor.errors import UserError
from xfactor.geometry import cameras

# Converts camera axes between OpenCV and OpenGL.
_FLIP = np.array([1.0, -1.0, -1.0, 1.0])


class Cameras(NamedTuple):
  """Cameras of a sequence (OpenCV).

  Attributes:
    intrinsics: float64 [N, 4] (fx, fy, cx, cy), divided by width and height.
    world_to_camera: float64 [N, 3, 4] [R|t].
  """

  intrinsics: np.ndarray
  world_to_camera: np.ndarray


def from_rows(rows: np.ndarray) -> Cameras:
  """Returns cameras from rows of 18 numbers in the format of RealEstate10K.

  Args:
    rows: [N, 18] normalised fx, fy, cx, cy, two unused numbers, and the three
      rows of world-to-camera [R|t].
  """
  rows = np.asarray(rows, np.float64)
  return Cameras(rows[:, :4], rows[:, 6:].reshape(-1, 3, 4))


class RealEstateFile(NamedTuple):
  """A camera file of RealEstate10K.

  Attributes:
    url: URL of the video.
    timestamps: int64 [N] microseconds of the video, ascending.
    cameras: One camera per timestamp.
  """

  url: str
  timestamps: np.ndarray
  cameras: Cameras


def read_realestate(path: str | os.PathLike[str]) -> RealEstateFile:
  """Reads a camera file of RealEstate10K.

  The first line is the video's URL; each other line has a timestamp and the
  numbers of `from_rows` (https://google.github.io/realestate10k/download.html).

  Raises:
    UserError: If the file cannot be read or has another format.
  """
  path = epath.Path(path)
  try:
    url, *lines = path.read_text().splitlines()
    lines = [line.split() for line in lines if line.strip()]
    timestamps = np.array([int(line[0]) for line in lines], np.int64)
    rows = np.array([line[1:] for line in lines], np.float64)
    if rows.shape != (len(lines), 18) or not np.isfinite(rows).all():
      raise ValueError('numbers are missing')
  except (OSError, ValueError) as error:
    raise UserError(
      f'{path} is not a camera file of RealEstate10K ({error}): a line with '
      'the URL of the video, then 19 numbers per line; download it again'
    ) from error
  order = np.argsort(timestamps, kind='stable')
  return RealEstateFile(url.strip(), timestamps[order], from_rows(rows[order]))


class Frame(NamedTuple):
  """A frame of a transforms.json (OpenCV).

  Attributes:
    path: Path of the picture, as in the file.
    intrinsics: float64 [4] (fx, fy, cx, cy), divided by width and height.
    world_to_camera: float64 [3, 4] [R|t] in the world of the file.
    distortion: Largest absolute distortion coefficient, 0 for a pinhole.
  """

  path: str
  intrinsics: np.ndarray
  world_to_camera: np.ndarray
  distortion: float


def read_transforms(path: str | os.PathLike[str]) -> list[Frame]:
  """Reads the transforms.json of instant-ngp, nerfstudio and DL3DV.

  `transform_matrix` is camera-to-world with OpenGL's axes (x right, y up, z
  back). The intrinsics of the file, which a frame may override, are pixels of
  `w` x `h`. The poses stay in the file's world: `applied_transform`, which
  nerfstudio applied to COLMAP's world, is not undone.
  (docs.nerf.studio, "Data conventions".)

  Raises:
    UserError: If the file cannot be read or a number is missing.
  """
  path = epath.Path(path)
  try:
    meta = json.loads(path.read_text())
    return [_frame(meta | frame) for frame in meta['frames']]
  except (OSError, ValueError, KeyError, TypeError) as error:
    reason = f'it lacks {error}' if isinstance(error, KeyError) else error
    raise UserError(
      f'{path} is not a transforms.json with intrinsics and poses ({reason}); '
      'download it again'
    ) from error


def _frame(values: dict[str, Any]) -> Frame:
  size = [float(values['w']), float(values['h'])]
  pixels = [float(values[key]) for key in ('fl_x', 'fl_y', 'cx', 'cy')]
  matrix = np.array(values['transform_matrix'], np.float64).reshape(4, 4)
  if not np.isfinite([*pixels, *matrix.flat]).all() or min(size) <= 0:
    raise ValueError(f'no camera for {values["file_path"]}')
  lens = ('k1', 'k2', 'k3', 'k4', 'p1', 'p2')
  return Frame(
    path=values['file_path'],
    intrinsics=np.array(pixels) / (size * 2),
    world_to_camera=cameras.invert_pose((matrix * _FLIP)[:3]),
    distortion=max(abs(float(values.get(key, 0))) for key in lens),
  )
