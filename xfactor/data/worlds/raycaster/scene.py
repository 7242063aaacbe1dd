"""Scenes of a few primitives, and scenes with baked light."""

import dataclasses

import numpy as np

ROOM, BOX, TUBE, ELLIPSOID = range(4)

f32 = np.float32
FAR = f32(np.inf)

# A face is 2 * axis + (1 if on the negative side); two axes span it.
NORMAL = np.repeat(np.eye(3, dtype=f32), 2, axis=0)
NORMAL[1::2] *= -1
ACROSS = np.eye(3, dtype=f32)[[1, 1, 0, 0, 0, 0]]
ALONG = np.eye(3, dtype=f32)[[2, 2, 2, 2, 1, 1]]
SIDE = 0  # The only face of an ellipsoid and the round face of a tube.


@dataclasses.dataclass(frozen=True)
class Light:
  """A rectangular light, or the sun seen through a rectangle.

  Attributes:
    centre: [3] centre of the rectangle.
    u: [3] half of one side; for lamps the rectangle approximates a small ball.
    v: [3] half of the other side.
    colour: [3] irradiance at a distance of one metre (sun: anywhere).
    normal: [3] normal of the emitting side, or zeros for all sides.
    sun: [3] direction to the sun, or None for a light at a finite distance.
  """

  centre: np.ndarray
  u: np.ndarray
  v: np.ndarray
  colour: np.ndarray
  normal: np.ndarray
  sun: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Scene:
  """P primitives; the first is the room, a box seen from inside.

  Attributes:
    kind: int [P], ROOM, BOX, TUBE (about its z axis) or ELLIPSOID.
    centre: [P, 3] centres in the world.
    half: [P, 3] half extents along the primitive's own axes.
    rotation: [P, 3, 3] rotations from world axes to own axes.
    group: int [P]; primitives of one object share a number.
    glow: [P] radiance relative to white paper in average light; 0 = none.
    tint: [P, 6, 3] factor of the texture of each face.
    texture: int [P, 6] texture of each face.
    tile: [P, 6] metres per texture repeat; 0 = stretched over the face.
    albedo: [T, R, R, 3] periodic textures, rows upwards, R a power of two.
    lights: Lights of the scene.
    key: Brightness of the exposure, about 0.3.
  """

  kind: np.ndarray
  centre: np.ndarray
  half: np.ndarray
  rotation: np.ndarray
  group: np.ndarray
  glow: np.ndarray
  tint: np.ndarray
  texture: np.ndarray
  tile: np.ndarray
  albedo: np.ndarray
  lights: tuple[Light, ...]
  key: float


@dataclasses.dataclass(frozen=True)
class Baked:
  """A lit scene, ready to render.

  Attributes:
    scene: Scene without light.
    light: [M, 3] light maps of all charts (one per face), including tint.
    chart: int [P * 6, 4] first light texel, columns, rows, first texel of the
      texture.
    repeats: [P * 6, 2] texture repeats over each face.
    detail: [P * 6] log2 of texture texels per metre.
    texels: [K, 3] all mip levels of all textures.
    level: int [L] offset of each mip level inside a texture.
  """

  scene: Scene
  light: np.ndarray
  chart: np.ndarray
  repeats: np.ndarray
  detail: np.ndarray
  texels: np.ndarray
  level: np.ndarray


def corners(scene: Scene) -> np.ndarray:
  """Returns world corners [P, 8, 3] of the primitives' oriented boxes."""
  signs = np.stack(np.meshgrid(*[[-1, 1]] * 3, indexing='ij'), -1)
  local = signs.reshape(1, 8, 3).astype(f32) * scene.half[:, None]
  return scene.centre[:, None] + local @ scene.rotation
