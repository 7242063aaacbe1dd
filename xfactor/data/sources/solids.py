"""Rendered solids on a ground, seen from all around; needs no download.

The scenes are similar to CLEVR (Johnson et al., CVPR 2017), the views to those
of SRT (Sajjadi et al., CVPR 2022): any two frames of a clip are independent
views of one scene. Scene i is a pure function of (seed, i).
"""

import colorsys
import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from xfactor.data import sources
from xfactor.data.sources import synthetic
from xfactor.data.worlds.raycaster import lighting
from xfactor.data.worlds.raycaster import scene as scene_lib
from xfactor.data.worlds.raycaster.scene import BOX, ELLIPSOID, ROOM, TUBE
from xfactor.geometry import cameras

# Focal length by sensor width (mm), as in CLEVR3D and MultiShapeNet.
FOCAL = 35 / 32
DISTANCE = (3.8, 4.2)
ELEVATION = (15, 50)  # Degrees.
COUNT = (2, 4)
# Range of the radius of a solid's disc and of half its height.
SIZE = (0.25, 0.5)
SPREAD = 1.25  # Maximum distance of solids from the origin.
GAP = 0.08  # Minimum gap between solids.
HUES = (0.0, 0.075, 0.15, 0.34, 0.49, 0.61, 0.76, 0.89)

# The ground and the backdrop; all cameras are inside.
_ROOM = np.array([6.0, 6.0, 3.0])
_GREY = (0.4, 0.4, 0.4)  # Linear, as in CLEVR.
_TARGET = np.array([0.0, 0.0, 0.35])
_UP = np.array([0.0, 0.0, 1.0])

Rng = np.random.Generator


def _place(rng: Rng, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Samples centres [n, 2] and radii [n] of discs that do not touch."""
  while True:
    radius = rng.uniform(*SIZE, count)
    place = rng.uniform(-SPREAD, SPREAD, (count, 2))
    apart = np.linalg.norm(place[:, None] - place, axis=-1)
    apart -= radius[:, None] + radius + GAP
    inside = np.linalg.norm(place, axis=-1) < SPREAD
    if inside.all() and (apart[np.triu_indices(count, 1)] > 0).all():
      return place, radius


def _halves(rng: Rng, kind: int, radius: float) -> list[float]:
  """Samples the half extents of a solid inside a disc."""
  if kind == ELLIPSOID and rng.uniform() < 0.5:
    return [radius] * 3
  height = rng.uniform(*SIZE)
  if kind == TUBE:
    return [radius, radius, height]
  if kind == ELLIPSOID:
    return [radius, radius * rng.uniform(0.7, 1), height]
  angle = np.radians(rng.uniform(35, 55))
  return [radius * np.cos(angle), radius * np.sin(angle), height]


def _lights(rng: Rng) -> tuple[scene_lib.Light, ...]:
  """Returns a sun whose window is large enough to light all, and a sky."""
  azimuth = np.radians(rng.uniform(-20, 20))
  elevation = np.radians(rng.uniform(45, 60))
  side = np.array([-np.sin(azimuth), np.cos(azimuth), 0])
  flat = np.cos(elevation)
  sun = np.array([flat * side[1], -flat * side[0], np.sin(elevation)])
  up = np.cross(sun, side)
  f32 = np.float32
  return (
    scene_lib.Light(
      # The room is behind a quarter of the window, away from its bars.
      centre=(20 * (sun + side + up)).astype(f32),
      u=(40 * side).astype(f32),
      v=(40 * up).astype(f32),
      colour=np.full(3, 1, f32),
      normal=-sun.astype(f32),
      sun=sun.astype(f32),
    ),
    scene_lib.Light(
      centre=f32([0, 0, 5.5]),
      u=f32([2.5, 0, 0]),
      v=f32([0, 2.5, 0]),
      colour=np.full(3, 12, f32),
      normal=np.zeros(3, f32),
    ),
  )


def _colour(hue: float, saturation: float, value: float) -> list[float]:
  """Converts HSV to linear RGB."""
  return [c**2.2 for c in colorsys.hsv_to_rgb(hue % 1, saturation, value)]


def build_scene(
  seed: int, index: int
) -> tuple[scene_lib.Scene, list[np.ndarray]]:
  """Builds scene `index`.

  Args:
    seed: Seed of the data set.
    index: Number of the scene.

  Returns:
    The scene, with the ground at z = 0, and the solids' centres.
  """
  rng = np.random.default_rng([seed, index, 0])
  count = int(rng.integers(COUNT[0], COUNT[1], endpoint=True))
  place, radius = _place(rng, count)
  kind = rng.choice([BOX, TUBE, ELLIPSOID], count)
  half = np.array(
    [_halves(rng, *one) for one in zip(kind.tolist(), radius, strict=True)]
  )
  centre = np.concatenate([place, half[:, 2:]], axis=1)
  yaw = rng.uniform(0, 2 * np.pi, count)
  rotation = np.zeros((count, 3, 3))
  rotation[:, 0, 0] = rotation[:, 1, 1] = np.cos(yaw)
  rotation[:, 0, 1], rotation[:, 1, 0] = np.sin(yaw), -np.sin(yaw)
  rotation[:, 2, 2] = 1
  hue = rng.permutation(HUES)[:count] + rng.uniform(-0.015, 0.015, count)
  tint = [_colour(h, rng.uniform(0.8, 0.95), rng.uniform(0.85, 1)) for h in hue]
  f32 = np.float32
  scene = scene_lib.Scene(
    kind=np.array([ROOM, *kind]),
    centre=np.array([_ROOM * [0, 0, 1], *centre], f32),
    half=np.array([_ROOM, *half], f32),
    rotation=np.array([np.eye(3), *rotation], f32),
    group=np.arange(count + 1),
    glow=np.zeros(count + 1, f32),
    tint=np.array([[one] * 6 for one in (_GREY, *tint)], f32),
    texture=np.zeros((count + 1, 6), int),
    tile=np.zeros((count + 1, 6), f32),
    albedo=np.ones((1, 1, 1, 3), f32),
    lights=_lights(rng),
    key=0.42,
  )
  return scene, list(centre)


def _views(rng: Rng, count: int, arc: float) -> np.ndarray:
  """Samples world-to-camera poses [n, 3, 4] of independent views."""
  azimuth = np.radians(rng.uniform(-arc / 2, arc / 2, count))
  elevation = np.radians(rng.uniform(*ELEVATION, count))
  flat = np.cos(elevation)
  eye = [flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)]
  eye = np.stack(eye, axis=-1) * rng.uniform(*DISTANCE, (count, 1))
  target = _TARGET + rng.uniform(-0.1, 0.1, (count, 3))
  return cameras.look_at(eye, target, _UP).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Source(synthetic.Rendered):
  """Plain solids on grey ground, with the options and splits of `synthetic`.

  The ground is at z = 0. The cameras are 15 to 50 degrees above it, about 4
  units from the origin, without roll, and look approximately at the origin.

  Attributes:
    frames: Independent views per clip, at least 2.
    arc: Degrees of the circle over which the cameras are spread.
  """

  name: ClassVar[str] = 'solids'
  version: ClassVar[str] = '1.1.0'
  description: ClassVar[str] = (
    'Colourful solids on a ground from all around, exact cameras and depth.'
  )
  limits: ClassVar[dict[str, tuple[float, float]]] = {
    **synthetic.Rendered.limits,
    'arc': (0, 360),
  }

  frames: int = 12
  arc: float = 360

  def scene(self, index: int) -> tuple[scene_lib.Scene, list[np.ndarray]]:
    """Returns scene `index`; see `build_scene`."""
    return build_scene(self.seed, index)

  def clips(self, item: sources.Item) -> Iterator[sources.Clip]:
    """Yields the clip of a scene; see the base class."""
    index = item.payload
    # A separate stream: the views do not depend on the samples of the scene.
    poses = _views(
      np.random.default_rng([self.seed, index, 1]), self.frames, self.arc
    )
    intrinsics = np.tile(np.float32([FOCAL, FOCAL, 0.5, 0.5]), (len(poses), 1))
    baked = lighting.bake(self.scene(index)[0])
    yield self.render(item.id, [baked], intrinsics, poses)
