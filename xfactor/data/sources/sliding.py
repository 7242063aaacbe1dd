"""Smooth random textures that slide past a camera; needs no download.

The simplest world with motion: a camera looks straight at a plane a unit away
and moves parallel to it. Scene i, a periodic texture, is a pure function of
(seed, i).
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from xfactor.data import sources
from xfactor.data.records import codec
from xfactor.data.sources import synthetic
from xfactor.errors import UserError
from xfactor.geometry import cameras, wander

_KINDS = ('slide', 'rise', 'slide+rise')
_FOCAL = 0.8  # By the width of a picture.
_TEXELS, _PERIOD = 128, 4.0  # Side of the texture; units between repeats.
_SMOOTH = 3.0  # Deviation of the Gaussian, texels.
_PLANE = 1.0  # The textured plane is at this x.
# Limits of cameras that see only the plane: largest x, smallest slope of rays.
_NEAREST, _SLOPE = 0.9, 0.1


@dataclasses.dataclass(frozen=True)
class Source(synthetic.Rendered):
  """Textured planes, with the options and splits of `synthetic`.

  Attributes:
    paths: Comma-separated kinds of camera paths; each clip gets one at random.
      A kind is 'slide', 'rise' or 'slide+rise'.
    move: Root mean square speed of each motion, units per frame.
  """

  name: ClassVar[str] = 'sliding'
  version: ClassVar[str] = '1.0.0'
  description: ClassVar[str] = (
    'Smooth random textures that slide, exact cameras and depth.'
  )
  limits: ClassVar[dict[str, tuple[float, float]]] = {
    **synthetic.Rendered.limits,
    'move': (0, 1),
  }

  paths: str = 'slide,rise,slide+rise'
  move: float = 0.03

  def __post_init__(self):
    super().__post_init__()
    for kind in self.paths.split(','):
      if kind not in _KINDS:
        raise UserError(
          f'the {self.name} source has no paths of kind {kind!r}; choose from '
          f'{", ".join(_KINDS)}'
        )

  def clips(self, item: sources.Item) -> Iterator[sources.Clip]:
    """Yields the clip of a scene; see the base class."""
    rng = np.random.default_rng([self.seed, item.payload, 1])
    path = wander.wander(
      rng,
      self.frames,
      wander.parse(str(rng.choice(self.paths.split(',')))),
      eye=np.append(0.0, rng.uniform(0, _PERIOD, 2)),
      yaw=0.0,
      turn=0.0,
      move=self.move,
    )
    level = dataclasses.replace(path, pitch=0 * path.pitch)
    poses = level.world_to_camera().astype(np.float32)
    intrinsics = np.tile(
      np.float32([_FOCAL, _FOCAL, 0.5, 0.5]), (len(poses), 1)
    )
    drawn = self._draw(item.payload, intrinsics, poses)
    # All pixels are at the same depth.
    plane = np.full((self.size, self.size), _PLANE, np.float32)
    views = ((picture, plane) for picture in drawn)
    timestamps = np.arange(self.frames) / 10
    yield self.encode(item.id, views, intrinsics, poses, timestamps)

  def is_free(
    self, clip: codec.Clip, world_to_camera: Float[np.ndarray, 'n 3 4']
  ) -> Bool[np.ndarray, ' n']:
    """Returns which cameras are in front of the plane and see only it."""
    origins, rays = cameras.pixel_rays(
      np.repeat(clip.intrinsics[:1], len(world_to_camera), 0),
      world_to_camera,
      2,
      2,
    )
    ahead = (rays[..., 0] > _SLOPE).all((1, 2))
    return ahead & (origins[..., 0] < _NEAREST).all((1, 2))

  def rerender(
    self, clip: codec.Clip, world_to_camera: Float[np.ndarray, 'n 3 4']
  ) -> UInt8[np.ndarray, 'n s s 3']:
    """Renders the plane of a clip from free cameras, without JPEG encoding."""
    intrinsics = np.repeat(clip.intrinsics[:1], len(world_to_camera), 0)
    return self._draw(int(clip.id), intrinsics, world_to_camera)

  def _draw(
    self, index: int, intrinsics: np.ndarray, poses: np.ndarray
  ) -> UInt8[np.ndarray, 'n s s 3']:
    origins, rays = cameras.pixel_rays(intrinsics, poses, self.size, self.size)
    reach = (_PLANE - origins[..., :1]) / rays[..., :1]
    points = (origins + reach * rays)[..., 1:] * (_TEXELS / _PERIOD)
    texture = _texture(self.seed, index)
    colours = [
      ndimage.map_coordinates(
        channel, np.moveaxis(points, -1, 0), order=1, mode='grid-wrap'
      )
      for channel in np.moveaxis(texture, -1, 0)
    ]
    return np.round(255 * np.stack(colours, -1)).astype(np.uint8)


@functools.lru_cache(maxsize=4)
def _texture(seed: int, index: int) -> Float[np.ndarray, 't t 3']:
  """Returns the periodic texture of a scene, 0..1."""
  noise = np.random.default_rng([seed, index, 0]).normal(
    size=(_TEXELS, _TEXELS, 3)
  )
  smooth = ndimage.gaussian_filter(noise, (_SMOOTH, _SMOOTH, 0), mode='wrap')
  return np.clip(0.5 + 0.22 * smooth / smooth.std(), 0, 1)
