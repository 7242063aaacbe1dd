"""Reads cameras and poses of COLMAP's sparse models without COLMAP.

A model is a folder with the files `cameras` and `images`, both `.bin` or both
`.txt` (https://colmap.github.io/format.html). Newer versions write `rigs` and
`frames` as well; the poses in `images` are complete without them.
"""

import functools
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from xfactor.data.formats import lens
from xfactor.errors import UserError

_POINT_BYTES = 24  # x, y, number of the 3D point.


class Image(NamedTuple):
  """A registered image.

  Attributes:
    camera: Camera of the image.
    world_to_camera: float64 [3, 4] [R|t], OpenCV axes.
  """

  camera: lens.Camera
  world_to_camera: np.ndarray


def read_model(folder: epath.Path) -> dict[str, Image] | None:
  """Reads the registered images of a model by name, in file order.

  Args:
    folder: Folder of the model, for instance `sparse/0`, local or gs://.

  Returns:
    The images, or None if the folder does not exist or has no model.

  Raises:
    UserError: If a file is damaged or has an unknown camera model.
  """
  for suffix, read_cameras, read_images in (
    ('.bin', _binary_cameras, _binary_images),
    ('.txt', _text_cameras, _text_images),
  ):
    first, second = folder / f'cameras{suffix}', folder / f'images{suffix}'
    if first.exists() and second.exists():
      cameras = _read(first, read_cameras)
      return _read(second, functools.partial(read_images, cameras=cameras))
  return None


def _read(path: epath.Path, parse: Callable[[bytes], dict]) -> dict:
  try:
    return parse(path.read_bytes())
  except (ValueError, struct.error) as error:
    raise UserError(
      f'{path} is not a readable COLMAP model ({error}); restore it from its '
      'origin or remove it'
    ) from error


def _image(
  camera_id: int, pose: Sequence[float], cameras: dict[int, lens.Camera]
) -> Image:
  """Returns an image, given its quaternion (w, x, y, z) and translation."""
  if camera_id not in cameras:
    raise ValueError(f'there is no camera {camera_id}')
  quaternion, translation = np.split(np.array(pose, np.float64), [4])
  length = np.linalg.norm(quaternion)
  if len(pose) != 7 or not 0 < length < np.inf or not np.isfinite(pose).all():
    raise ValueError(f'{list(pose)} is not a pose')
  w, x, y, z = quaternion / length
  rotation = [
    [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
    [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
    [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
  ]
  return Image(cameras[camera_id], np.column_stack([rotation, translation]))


class _Reader:
  """Reads consecutive little-endian numbers and strings."""

  def __init__(self, data: bytes):
    self._data = data
    self._at = 0

  def numbers(self, layout: str) -> tuple:
    values = struct.unpack_from(f'<{layout}', self._data, self._at)
    self._at += struct.calcsize(f'<{layout}')
    return values

  def text(self) -> str:
    begin, self._at = self._at, self._data.index(0, self._at) + 1
    return self._data[begin : self._at - 1].decode()

  def skip(self, count: int) -> None:
    self._at += count
    if self._at > len(self._data):
      raise ValueError('it ends early')

  def end(self) -> None:
    if self._at != len(self._data):
      raise ValueError(f'{len(self._data) - self._at} bytes too many')


def _binary_cameras(data: bytes) -> dict[int, lens.Camera]:
  reader = _Reader(data)
  cameras = {}
  for _ in range(*reader.numbers('Q')):
    camera_id, number, width, height = reader.numbers('IiQQ')
    if not 0 <= number < len(lens.MODELS):
      raise ValueError(f'unknown camera model {number}')
    name, _, count = lens.MODELS[number]
    values = reader.numbers(f'{count}d')
    cameras[camera_id] = lens.make_camera(name, width, height, values)
  reader.end()
  return cameras


def _binary_images(
  data: bytes, cameras: dict[int, lens.Camera]
) -> dict[str, Image]:
  reader = _Reader(data)
  images = {}
  for _ in range(*reader.numbers('Q')):
    _, *pose, camera_id = reader.numbers('I7dI')
    name = reader.text()
    images[name] = _image(camera_id, pose, cameras)
    reader.skip(reader.numbers('Q')[0] * _POINT_BYTES)
  reader.end()
  return images


def _text_cameras(data: bytes) -> dict[int, lens.Camera]:
  cameras = {}
  for line in data.decode().splitlines():
    if not line.strip() or line.lstrip().startswith('#'):
      continue
    camera_id, name, width, height, *values = line.split()
    cameras[int(camera_id)] = lens.make_camera(
      name, int(width), int(height), [float(v) for v in values]
    )
  return cameras


def _text_images(
  data: bytes, cameras: dict[int, lens.Camera]
) -> dict[str, Image]:
  images = {}
  lines = iter(data.decode().splitlines())
  for line in lines:
    if not line.strip() or line.lstrip().startswith('#'):
      continue
    # Names may have spaces.
    _, *pose, camera_id, name = line.strip().split(maxsplit=9)
    pose = [float(value) for value in pose]
    images[name] = _image(int(camera_id), pose, cameras)
    # The next line has the image's points. If these lines were removed, every
    # other image would be read as points.
    if len(next(lines, '').split()) % 3:
      raise ValueError(f'after {name} must come its points or an empty line')
  return images
