"""Poses by VGGT, as in the official evaluation of XFactor.

Preprocessing and the order of frames follow vsitzmann/xfactor-nvs (commit
d0dd984). VGGT returns poses for any pictures; the rejection of clips is ours.
The package has no weights, see `network.WHERE`.
"""

import dataclasses
import hashlib
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float

from xfactor.errors import UserError
from xfactor.evaluation.oracles.base import (
  Images,
  PoseOracle,
  PoseResult,
  Scene,
  check_images,
  from_poses,
  guarded,
  still,
)
from xfactor.evaluation.oracles.vggt import network
from xfactor.geometry import cameras
from xfactor.nn import attention

_DTYPES = ('float32', 'bfloat16')
# Smallest valid length of a quaternion, and margin of a valid field of view.
_ZERO = 1e-6
_STRIDE = 14


class Oracle(PoseOracle):
  """Runs VGGT-1B with given weights; a scene's mean distance is about 1.

  Clips are not `ok` if they hardly change, if their recovered cameras hardly
  move (translation directions would be noise), or if VGGT returns no pose.

  Args:
    weights: Path of the authors' .safetensors or .pt file, local or gs://.
    size: Side of the network's input pictures; a multiple of 14.
    dtype: Dtype of the aggregator's products: 'float32', 'bfloat16', or 'auto'
      for bfloat16 on accelerators.
    min_change: Smallest mean absolute difference, in 8-bit grey levels, between
      the first frame and the one that differs most.
    min_baseline: Smallest distance, in VGGT's units, between the first camera
      and the one farthest away.
  """

  name = 'vggt'
  version = '1'

  def __init__(
    self,
    weights: str,
    size: int = 518,
    dtype: str = 'auto',
    min_change: float = 1.0,
    min_baseline: float = 0.01,
  ):
    platform = jax.default_backend()
    if dtype == 'auto':
      dtype = 'float32' if platform == 'cpu' else 'bfloat16'
    if dtype not in _DTYPES:
      raise UserError(
        f'the vggt oracle has no dtype {dtype!r}; choose "auto" or one of '
        f'{", ".join(_DTYPES)}'
      )
    if size < _STRIDE or size % _STRIDE:
      raise UserError(
        f'the vggt oracle was given size {size}; it must be a multiple of '
        f'{_STRIDE}'
      )
    self._size, self._dtype = size, dtype
    self._min_change, self._min_baseline = min_change, min_baseline
    self._kernel = attention.choose_kernel('auto', platform, jnp.dtype(dtype))
    self._config, self._params = network.load(weights, dtype)
    with epath.Path(weights).open('rb') as file:
      self._digest = hashlib.file_digest(file, 'sha256').hexdigest()

  def settings(self) -> dict[str, Any]:
    return {
      'weights': self._digest,
      'size': self._size,
      'dtype': self._dtype,
      'min_change': self._min_change,
      'min_baseline': self._min_baseline,
    }

  def __call__(self, images: Images, scene: Scene | None = None) -> PoseResult:
    check_images(images)
    first = images[0].astype(np.float32)
    change = max(float(np.abs(image - first).mean()) for image in images)
    if change < self._min_change:
      return still(len(images), self._min_change, change=change)
    start = time.perf_counter()
    # The middle frame is the network's reference, as in the official code.
    encoding = self.encode(images, len(images) // 2)
    length = np.linalg.norm(encoding[:, 3:7], axis=-1)
    encoding[~(np.isfinite(encoding).all(-1) & (length > _ZERO))] = np.nan
    result = guarded(
      from_poses(
        network.world_to_camera(encoding),
        _intrinsics(encoding, *images.shape[1:3], self._size),
      )
    )
    info = {
      'reasons': [],
      **result.info,
      'change': change,
      'seconds': time.perf_counter() - start,
    }
    if result.ok:
      centres = cameras.camera_centre(result.world_to_camera[:, :3])
      info['baseline'] = float(np.linalg.norm(centres, axis=-1).max())
      if info['baseline'] < self._min_baseline:
        info['reasons'].append(
          f'the cameras are within {info["baseline"]:.3g} of the first, less '
          f'than {self._min_baseline:g}'
        )
    return dataclasses.replace(
      result, ok=result.ok and not info['reasons'], info=info
    )

  def encode(self, images: Images, reference: int) -> Float[np.ndarray, 'v 9']:
    """Returns VGGT's pose encodings, in float64 and the frames' order.

    Args:
      images: The frames.
      reference: Index of the frame that is VGGT's reference.
    """
    order = np.arange(len(images))
    order = np.concatenate([[reference], np.delete(order, reference)])
    pictures = [
      preprocess(image.astype(np.float32) / 255, self._size)
      for image in images[order]
    ]
    encoding = network.predict(
      self._params,
      jnp.asarray(np.stack(pictures)),
      config=self._config,
      kernel=self._kernel,
    )
    return np.asarray(encoding, np.float64)[np.argsort(order)]


def preprocess(
  image: Float[np.ndarray, 'h w 3'], size: int = 518
) -> Float[np.ndarray, '{size} {size} 3']:
  """Returns the centre of a picture in [0, 1] as VGGT's input.

  Resizes the short side to `size` and the long one to the next multiple of 14,
  then crops. The filter is torch's bicubic without antialiasing, as in the
  official code; smaller pictures are enlarged.
  """
  rows, columns = (
    _cubic(old, new)[_margin(new, size) :][:size]
    for old, new in zip(
      image.shape[:2], _resized(*image.shape[:2], size), strict=True
    )
  )
  out = np.einsum('yh,hwc,xw->yxc', rows, image, columns, optimize=True)
  return np.clip(out, 0, 1)


def _resized(height: int, width: int, size: int) -> tuple[int, int]:
  scale = size / min(height, width)
  height, width = (
    _STRIDE * math.ceil(side * scale / _STRIDE) for side in (height, width)
  )
  return height, width


def _margin(length: int, size: int) -> int:
  return (length - size) // 2


def _cubic(old: int, new: int, a: float = -0.75) -> np.ndarray:
  """Matrix [new, old] of torch's bicubic resize: clamped at the borders."""
  places = (np.arange(new) + 0.5) * old / new - 0.5
  matrix = np.zeros((new, old), np.float32)
  for tap in range(-1, 3):
    pixel = np.floor(places).astype(int) + tap
    d = np.abs(places - pixel)
    near = ((a + 2) * d - (a + 3)) * d**2 + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    pixel = np.clip(pixel, 0, old - 1)
    np.add.at(matrix, (np.arange(new), pixel), np.where(d < 1, near, far))
  return matrix


def _intrinsics(
  encoding: np.ndarray, height: int, width: int, size: int
) -> np.ndarray | None:
  """Returns intrinsics of the whole pictures, not of the network's input."""
  fov = encoding[:, 7:]
  if not ((fov > _ZERO) & (fov < np.pi - _ZERO)).all():
    return None
  seen = network.intrinsics(encoding)
  resized = _resized(height, width, size)[::-1]
  margin = [_margin(side, size) for side in resized]
  return np.concatenate(
    [seen[:, :2] * size, seen[:, 2:] * size + margin], -1
  ) / np.tile(resized, 2)
