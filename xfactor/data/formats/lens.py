"""Camera models of COLMAP and their lens distortion.

The formulas are those of colmap/sensor/models.h. A direction is (x, y) on the
plane at unit depth in front of the camera.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from xfactor.geometry import cameras

# (name, focal lengths, parameters), indexed by the model ids of COLMAP.
# Parameters are f or fx, fy; cx, cy; the distortion.
MODELS = (
  ('SIMPLE_PINHOLE', 1, 3),
  ('PINHOLE', 2, 4),
  ('SIMPLE_RADIAL', 1, 4),
  ('RADIAL', 1, 5),
  ('OPENCV', 2, 8),
  ('OPENCV_FISHEYE', 2, 8),
  ('FULL_OPENCV', 2, 12),
  ('FOV', 2, 5),
  ('SIMPLE_RADIAL_FISHEYE', 1, 4),
  ('RADIAL_FISHEYE', 1, 5),
  ('THIN_PRISM_FISHEYE', 2, 12),
  ('RAD_TAN_THIN_PRISM_FISHEYE', 2, 16),
  ('SIMPLE_DIVISION', 1, 4),
  ('DIVISION', 2, 5),
  ('SIMPLE_FISHEYE', 1, 3),
  ('FISHEYE', 2, 4),
  ('EUCM', 2, 6),
)
_PINHOLES = ('SIMPLE_PINHOLE', 'PINHOLE')
_STEPS = 24  # Bisections in the search for a focal length.
_FARTHEST = 8.0  # Maximum factor of the focal length.


@dataclasses.dataclass(frozen=True)
class Camera:
  """A camera that one or more images share.

  Attributes:
    model: Name of the camera model, for instance 'OPENCV'.
    width: Pixels of the pictures that the camera was found with.
    height: Pixels of these pictures.
    intrinsics: float64 [4] (fx, fy, cx, cy), divided by the width and height;
      as in COLMAP the centre of the first pixel is 0.5 / width, 0.5 / height.
    distortion: float64 [...], the other parameters in COLMAP's order.
  """

  model: str
  width: int
  height: int
  intrinsics: np.ndarray
  distortion: np.ndarray

  @property
  def fisheye(self) -> bool:
    """Whether pictures differ much from those of a pinhole camera."""
    return 'FISHEYE' in self.model or self.model in ('FOV', 'EUCM')

  @property
  def distorted(self) -> bool:
    """Whether pictures differ at all from those of a pinhole camera."""
    exact = self.model in ('SIMPLE_FISHEYE', 'FISHEYE', 'EUCM')
    return exact or bool(np.any(self.distortion))


def make_camera(
  name: str, width: int, height: int, values: Sequence[float]
) -> Camera:
  """Returns a camera, given its parameters in COLMAP's order.

  Raises:
    ValueError: If the model is unknown or the values do not fit it.
  """
  models = {model[0]: model[1:] for model in MODELS}
  if name not in models:
    raise ValueError(f'unknown camera model {name}')
  focals, count = models[name]
  values = np.array(values, np.float64)
  if len(values) != count:
    raise ValueError(f'{name} has {count} parameters, not {len(values)}')
  if min(width, height) < 1 or not np.isfinite(values).all():
    raise ValueError(f'{name} of {width} x {height} with {values.tolist()}')
  size = np.array([width, height])
  return Camera(
    model=name,
    width=width,
    height=height,
    # A single focal length is used for both axes.
    intrinsics=np.concatenate(
      [values[:focals] / size, values[focals : focals + 2] / size]
    ),
    distortion=values[focals + 2 :],
  )


def distort(camera: Camera, xy: np.ndarray) -> np.ndarray:
  """Returns where directions appear, [..., 2], in units of the focal length."""
  x, y = np.moveaxis(np.asarray(xy, np.float64), -1, 0)
  name, k = camera.model, camera.distortion
  r2 = x * x + y * y
  if name in _PINHOLES:
    factor = 1.0
  elif name in ('SIMPLE_RADIAL', 'RADIAL', 'OPENCV'):
    factor = 1 + _series(k[:2] if name != 'SIMPLE_RADIAL' else k, r2)
  elif name == 'FULL_OPENCV':
    factor = (1 + _series(k[[0, 1, 4]], r2)) / (1 + _series(k[5:], r2))
  elif name in ('SIMPLE_DIVISION', 'DIVISION'):
    # NaN beyond the picture of the lens.
    factor = 2 / (
      1 + np.sqrt(np.where(4 * k[0] * r2 > 1, np.nan, 1 - 4 * k[0] * r2))
    )
  elif name == 'EUCM':
    alpha, beta = k
    factor = 1 / (alpha * np.sqrt(beta * r2 + 1) + 1 - alpha)
  elif name == 'FOV':
    r, wide = np.maximum(np.sqrt(r2), 1e-9), 2 * np.tan(k[0] / 2)
    factor = np.arctan(r * wide) / (r * k[0]) if k[0] else 1.0
  else:
    r = np.maximum(np.sqrt(r2), 1e-9)
    theta = np.arctan(r)
    radial = {
      'THIN_PRISM_FISHEYE': k[:0],
      'RAD_TAN_THIN_PRISM_FISHEYE': k[:6],
    }.get(name, k)
    factor = theta / r * (1 + _series(radial, theta * theta))
  x, y = x * factor, y * factor
  if name in ('OPENCV', 'FULL_OPENCV'):
    # Computed from the directions before radial distortion.
    dx, dy = _tangential(*np.moveaxis(np.asarray(xy, float), -1, 0), k[2:4])
  elif name == 'THIN_PRISM_FISHEYE':
    r2 = x * x + y * y
    radial = _series(k[[0, 1, 4, 5]], r2)
    dx, dy = _tangential(x, y, k[2:4])
    dx, dy = dx + x * radial + k[6] * r2, dy + y * radial + k[7] * r2
  elif name == 'RAD_TAN_THIN_PRISM_FISHEYE':
    r2 = x * x + y * y
    dx, dy = _tangential(x, y, k[[7, 6]])
    dx = dx + k[8] * r2 + k[9] * r2 * r2
    dy = dy + k[10] * r2 + k[11] * r2 * r2
  else:
    dx = dy = 0.0
  return np.stack([x + dx, y + dy], -1)


def _series(k: np.ndarray, x: np.ndarray) -> np.ndarray:
  """Returns k[0] x + k[1] x^2 + ..."""
  out = np.zeros_like(x)
  for value in k[::-1]:
    out = (out + value) * x
  return out


def _tangential(
  x: np.ndarray, y: np.ndarray, p: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  r2 = x * x + y * y
  return (
    2 * p[0] * x * y + p[1] * (r2 + 2 * x * x),
    2 * p[1] * x * y + p[0] * (r2 + 2 * y * y),
  )


def undistort(
  rgb: np.ndarray, camera: Camera, size: int | None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the picture of a pinhole camera at the same place.

  It shows no pixel that the lens did not see. Its principal point is that of
  the lens and its focal length the same, or longer where the corners would
  show more than the picture.

  Args:
    rgb: uint8 [H, W, 3], of the aspect ratio of the camera's pictures.
    camera: Camera of the picture.
    size: Side of the central square to return; None for the whole picture.

  Returns:
    uint8 [size, size, 3], or a picture of the size of `rgb`, and its
    normalised intrinsics, float64 [4].
  """
  height, width = rgb.shape[:2]
  shape = (1, 1) if size is not None else (height, width)
  if size is not None and (steps := min(height, width) // (2 * size)) > 1:
    # Enough pixels to sample from, without aliases.
    height, width = height // steps, width // steps
    rgb = np.asarray(
      Image.fromarray(rgb).resize((width, height), Image.Resampling.BOX)
    )
  key = (camera.model, *camera.intrinsics, *camera.distortion)
  at, weights, intrinsics = _samples(key, height, width, shape)
  flat = rgb.reshape(-1, 3)
  out = sum(
    flat[index] * weight[..., None]
    for index, weight in zip(at, weights, strict=True)
  )
  out = (out + 0.5).astype(np.uint8)
  if size is not None and out.shape[:2] != (size, size):
    out = np.asarray(
      Image.fromarray(out).resize((size, size), Image.Resampling.LANCZOS)
    )
  return out, intrinsics


@functools.lru_cache(4)
def _samples(
  key: tuple[object, ...], height: int, width: int, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns which pixels to add up, [4, h, w], with which weights.

  The third result are the intrinsics of the new picture.
  """
  model, *values = key
  camera = Camera(
    model, width, height, np.array(values[:4]), np.array(values[4:])
  )
  size = np.array([width, height])
  focal, centre = camera.intrinsics[:2] * size, camera.intrinsics[2:] * size
  top, left, rows, columns = cameras.centre_crop(height, width, shape)
  zoom = _zoom(camera, (left, top, left + columns, top + rows))
  u, v = np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5)
  pixels = np.stack([u + left, v + top], -1)
  seen = distort(camera, (pixels - centre) / (zoom * focal)) * focal + centre
  seen = np.clip(seen - 0.5, 0, size - 1)
  low = np.minimum(seen.astype(np.int64), np.maximum(size - 2, 0))
  part = seen - low
  at, weights = [], []
  for dy in (0, 1):
    for dx in (0, 1):
      x, y = np.minimum(low + [dx, dy], size - 1).transpose(2, 0, 1)
      at.append(y * width + x)
      wx, wy = np.where([dx, dy], part, 1 - part).transpose(2, 0, 1)
      weights.append((wx * wy).astype(np.float32))
  scale = size / [columns, rows]
  corner = np.array([left, top]) / [columns, rows]
  intrinsics = np.concatenate(
    [
      zoom * camera.intrinsics[:2] * scale,
      camera.intrinsics[2:] * scale - corner,
    ]
  )
  return np.stack(at), np.stack(weights), intrinsics


def _zoom(camera: Camera, box: tuple[int, int, int, int]) -> float:
  """Returns the factor of the focal length with which no edge shows."""
  size = np.array([camera.width, camera.height])
  focal, centre = camera.intrinsics[:2] * size, camera.intrinsics[2:] * size
  left, top, right, bottom = box
  side = np.linspace(0, 1, 33)[:, None]
  corners = np.array(
    [[left, top], [right, top], [right, bottom], [left, bottom]]
  )
  edge = np.concatenate(
    [
      a + (b - a) * side
      for a, b in zip(corners, np.roll(corners, -1, 0), strict=True)
    ]
  )
  # Along the line to each point: models fold back beyond what they describe.
  steps = np.linspace(0, 1, 25)[1:, None, None]

  def shows_picture(zoom: float) -> bool:
    seen = distort(camera, steps * ((edge - centre) / (zoom * focal)))
    grows = np.diff((seen**2).sum(-1), axis=0) > 0
    pixels = seen[-1] * focal + centre
    inside = (pixels >= -0.5) & (pixels <= size + 0.5)
    return bool(inside.all() and grows.all())

  if shows_picture(1.0):
    return 1.0
  low, high = 1.0, _FARTHEST
  for _ in range(_STEPS):
    middle = (low + high) / 2
    low, high = (low, middle) if shows_picture(middle) else (middle, high)
  return high
