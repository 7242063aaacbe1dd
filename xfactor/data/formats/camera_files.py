"""Reads camera files: the text of RealEstate10K, and transforms.json."""

import json
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float

from xfactor.data.formats import lens
from xfactor.errors import UserError
from xfactor.geometry import cameras

# Converts camera axes between OpenCV and OpenGL.
FLIP = np.array([1.0, -1.0, -1.0, 1.0])
_FISHEYES = ('OPENCV_FISHEYE', 'SIMPLE_RADIAL_FISHEYE', 'RADIAL_FISHEYE')


class Cameras(NamedTuple):
  """Cameras of a sequence (OpenCV).

  Attributes:
    intrinsics: float64 [N, 4] (fx, fy, cx, cy), divided by width and height.
    world_to_camera: float64 [N, 3, 4] [R|t].
  """

  intrinsics: np.ndarray
  world_to_camera: np.ndarray

  @property
  def focal(self) -> Float[np.ndarray, ' n'] | None:
    """Focal lengths of the central square, divided by its side, if known."""
    focal = self.intrinsics[:, :2].max(1)  # That of the shorter side.
    return focal if np.isfinite(focal).all() else None


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
  except (OSError, ValueError, ArithmeticError) as error:
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
    camera: Camera of the picture.
    world_to_camera: float64 [3, 4] [R|t] in the world of the file.
  """

  path: str
  camera: lens.Camera
  world_to_camera: np.ndarray


def read_transforms(
  path: str | os.PathLike[str],
  size_of: Callable[[str], tuple[int, int]] | None = None,
) -> list[Frame]:
  """Reads the transforms.json of instant-ngp, nerfstudio, DL3DV and NeRF.

  `transform_matrix` is camera-to-world with OpenGL's axes (x right, y up, z
  back). The intrinsics of the file, which a frame may override, are pixels of
  `w` x `h`; without `fl_x`, `camera_angle_x` gives the focal length. The poses
  stay in the file's world: `applied_transform`, which nerfstudio applied to
  COLMAP's world, is not undone. (docs.nerf.studio, "Data conventions".)

  Args:
    path: The file.
    size_of: Returns height and width of a picture, given its path in the file;
      called for frames without `w` and `h`.

  Raises:
    UserError: If the file cannot be read, a number is missing, or a camera is
      of an unknown kind.
  """
  path = epath.Path(path)
  try:
    meta = json.loads(path.read_text())
    return [_frame(meta | frame, size_of) for frame in meta['frames']]
  except (
    *(OSError, ValueError, ArithmeticError),
    *(KeyError, TypeError, AttributeError),
  ) as error:
    reason = f'it lacks {error}' if isinstance(error, KeyError) else error
    raise UserError(
      f'{path} is not a transforms.json with intrinsics and poses ({reason}); '
      'download it again'
    ) from error


def _frame(
  values: dict[str, Any], size_of: Callable[[str], tuple[int, int]] | None
) -> Frame:
  name = values['file_path']
  if size_of is not None and ('w' not in values or 'h' not in values):
    height, width = size_of(name)
  else:
    width, height = int(values['w']), int(values['h'])
  if 'fl_x' not in values and 'camera_angle_x' in values:
    focal = width / 2 / math.tan(float(values['camera_angle_x']) / 2)
    values = {'fl_x': focal, 'cx': width / 2, 'cy': height / 2} | values
  values = {'fl_y': values['fl_x']} | values
  pixels = [float(values[key]) for key in ('fl_x', 'fl_y', 'cx', 'cy')]
  matrix = np.array(values['transform_matrix'], np.float64).reshape(-1, 4)[:3]
  if not np.isfinite([*pixels, *matrix.flat]).all() or min(width, height) <= 0:
    raise ValueError(f'no camera for {name}')
  return Frame(
    path=name,
    camera=lens.make_camera(*_model(values, width, height, pixels)),
    world_to_camera=cameras.invert_pose(_rigid(matrix, name) * FLIP),
  )


def _rigid(matrix: np.ndarray, name: str) -> np.ndarray:
  """Returns a camera-to-world without the scale that some tools leave in it."""
  determinant = np.linalg.det(matrix[:, :3])
  # A reflection is no camera.
  rotation = matrix[:, :3] / np.cbrt(determinant) if determinant > 0 else None
  if rotation is None or abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3:
    raise ValueError(f'the transform_matrix of {name} is no rotation')
  return np.column_stack([rotation, matrix[:, 3]])


def _model(
  values: dict[str, Any], width: int, height: int, pixels: list[float]
) -> tuple[str, int, int, list[float]]:
  """Returns the arguments of `lens.make_camera`."""
  model = str(values.get('camera_model', 'OPENCV')).upper()
  k1, k2, k3, k4, p1, p2 = (
    float(values.get(key) or 0) for key in ('k1', 'k2', 'k3', 'k4', 'p1', 'p2')
  )
  if model in ('PINHOLE', 'SIMPLE_PINHOLE', 'PERSPECTIVE'):
    return 'PINHOLE', width, height, pixels
  if values.get('is_fisheye') or model in _FISHEYES:
    return 'OPENCV_FISHEYE', width, height, [*pixels, k1, k2, k3, k4]
  if model not in ('OPENCV', 'SIMPLE_RADIAL', 'RADIAL', 'FULL_OPENCV') or k4:
    raise ValueError(f'camera_model is {model}{" with k4" if k4 else ""}')
  if k3:
    return 'FULL_OPENCV', width, height, [*pixels, k1, k2, p1, p2, k3, 0, 0, 0]
  return 'OPENCV', width, height, [*pixels, k1, k2, p1, p2]
