"""Surfaces and primitives of furniture."""

import dataclasses
from collections.abc import Callable

import numpy as np

from xfactor.data.worlds.raycaster.scene import BOX, ELLIPSOID, TUBE
from xfactor.data.worlds.rooms import textures


@dataclasses.dataclass(frozen=True)
class Look:
  """A surface: texture number, linear tint, metres per repeat, glow."""

  texture: int
  tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
  tile: float = 0.0
  glow: float = 0.0

  def tinted(self, colour) -> 'Look':
    tint = tuple(float(c) ** 2.2 for c in colour)
    return dataclasses.replace(self, tint=tint)


@dataclasses.dataclass(frozen=True)
class Primitive:
  """A primitive of an object; `looks` overrides `look` for some faces."""

  kind: int
  centre: np.ndarray
  half: np.ndarray
  look: Look
  axes: np.ndarray = dataclasses.field(default_factory=lambda: np.eye(3))
  looks: dict[int, Look] = dataclasses.field(default_factory=dict)


def box(x, y, z, w, d, h, look, **looks) -> Primitive:
  """Returns a box with its bottom centre at (x, y, z); `front` is -y."""
  faces = {{'front': 3, 'top': 4}[k]: v for k, v in looks.items()}
  return Primitive(
    BOX, np.array([x, y, z + h / 2]), np.array([w, d, h]) / 2, look, looks=faces
  )


def tube(x, y, z, r, h, look) -> Primitive:
  return Primitive(
    TUBE, np.array([x, y, z + h / 2]), np.array([r, r, h / 2]), look
  )


def blob(x, y, z, rx, ry, rz, look) -> Primitive:
  return Primitive(
    ELLIPSOID, np.array([x, y, z + rz]), np.array([rx, ry, rz]), look
  )


def turned(yaw: float) -> np.ndarray:
  c, s = np.cos(yaw), np.sin(yaw)
  return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def tip(angle: float) -> np.ndarray:
  """Returns a rotation about x."""
  c, s = np.cos(angle), np.sin(angle)
  return np.array([[1.0, 0, 0], [0, c, -s], [0, s, c]])


def move(parts: list[Primitive], x, y, z=0.0, yaw=0.0) -> list[Primitive]:
  """Rotates parts about the vertical axis and translates them."""
  turn = turned(yaw)
  return [
    dataclasses.replace(
      p, centre=turn @ p.centre + [x, y, z], axes=turn @ p.axes
    )
    for p in parts
  ]


class Looks:
  """Palette and textures of one scene."""

  def __init__(self, rng: textures.Rng, resolution: int):
    self._rng, self._resolution = rng, resolution
    self._images: list[np.ndarray] = []
    hue = rng.uniform()
    self.hue = hue
    # Most rooms have low saturation; a few do not.
    saturation = rng.choice([0.08, 0.16, 0.16, 0.28, 0.5])
    saturation *= rng.uniform(0.6, 1.2)
    wood_hue = rng.uniform(0.04, 0.11)
    wood_value = rng.uniform(0.3, 0.85)
    wood = textures.hsv(wood_hue, rng.uniform(0.3, 0.65), wood_value)
    other = textures.hsv(
      wood_hue + rng.normal() * 0.02,
      rng.uniform(0.1, 0.6),
      rng.uniform(0.25, 0.95),
    )
    self.accents = [
      textures.hsv(hue + shift, rng.uniform(0.12, 0.65), rng.uniform(0.3, 0.9))
      for shift in (0.5, 0.4, 0.08, 0.55, rng.uniform())
    ]
    self.paint = self.texture(textures.plain, [0.9] * 3, [1.0] * 3, 1.5)
    self.white = self.paint.tinted([0.92, 0.91, 0.88])
    self.dark = self.paint.tinted([0.16, 0.16, 0.18])
    grey = rng.uniform(0.35, 0.8)
    self.metal = self.paint.tinted([grey, grey, grey * 1.03])
    self.wood = self.texture(textures.wood, wood * 0.75, wood, 0.9)
    self.wood2 = self.texture(textures.wood, other * 0.75, other, 0.7)
    self.leaf = self.texture(
      textures.leaves,
      textures.hsv(0.27, 0.7, 0.3),
      textures.hsv(rng.uniform(0.2, 0.36), 0.6, 0.65),
      0.5,
    )
    self.fabrics = [
      self.texture(
        rng.choice(
          [
            textures.fabric,
            textures.fabric,
            textures.plaid,
            textures.stripes,
            textures.checks,
          ]
        ),
        self.accents[i],
        self.accents[i] * rng.uniform(0.5, 0.8),
        rng.uniform(0.4, 0.9),
      )
      for i in range(2)
    ]
    self.books = self.texture(textures.books, wood, other, 0.75)
    style = rng.uniform()
    value = rng.uniform(0.55, 0.95)
    wall = textures.hsv(hue, saturation * (0.35 if style < 0.5 else 1), value)
    wall_b = textures.hsv(
      hue + rng.normal() * 0.06, saturation * 1.3, value * 0.8
    )
    self.walls = [
      self.texture(
        rng.choice(
          [
            textures.plain,
            textures.plain,
            textures.stripes,
            textures.dots,
            textures.damask,
            textures.planks,
            textures.concrete,
          ]
        ),
        wall,
        _soften(wall_b, wall, rng.uniform(0.3, 0.9)),
        rng.uniform(0.9, 1.8),
      ),
      self.texture(
        rng.choice(
          [
            textures.bricks,
            textures.planks,
            textures.tiles,
            textures.damask,
            textures.stripes,
            textures.plain,
            textures.dots,
            textures.marble,
          ]
        ),
        self.accents[0],
        wall_b,
        rng.uniform(1.0, 2.0),
      ),
    ]
    floor = rng.choice(
      [
        textures.planks,
        textures.planks,
        textures.planks,
        textures.tiles,
        textures.checks,
        textures.fabric,
        textures.concrete,
        textures.marble,
      ]
    )
    if floor is textures.planks:
      a, b = wood * 0.7, np.minimum(wood * 1.2, 1)
    elif floor in (textures.tiles, textures.checks, textures.marble):
      a, b = (
        textures.hsv(hue, 0.08, 0.9),
        textures.hsv(hue + 0.5, 0.35, rng.uniform(0.2, 0.7)),
      )
    else:
      a = textures.hsv(
        hue + 0.4, rng.uniform(0.05, 0.25), rng.uniform(0.3, 0.7)
      )
      b = a * 0.75
    self.floor = self.texture(floor, a, b, rng.uniform(1.4, 2.4))
    self.ceiling = self.texture(
      rng.choice(
        [textures.plain, textures.plain, textures.concrete, textures.planks]
      ),
      textures.hsv(hue, 0.05, 0.95),
      textures.hsv(hue, 0.1, 0.85),
      2.0,
    )

  def texture(self, draw: Callable, a, b, tile: float = 0.0) -> Look:
    """Renders a texture of two colours; `tile` 0 stretches it over a face."""
    rng = np.random.default_rng(self._rng.integers(2**63))
    image = draw(
      rng,
      self._resolution,
      np.asarray(a, np.float32),
      np.asarray(b, np.float32),
    )
    self._images.append(np.clip(image, 0, 1).astype(np.float32))
    return Look(len(self._images) - 1, tile=tile)

  def accent(self) -> np.ndarray:
    return self.accents[self._rng.integers(len(self.accents))]

  def painted(self) -> Look:
    return self.paint.tinted(self.accent())

  def solid(self) -> Look:
    """Samples a surface of furniture."""
    looks = [self.wood, self.wood, self.wood2, self.white, self.painted()]
    return looks[self._rng.integers(len(looks))]

  def fabric(self) -> Look:
    return self.fabrics[self._rng.integers(len(self.fabrics))]

  def picture(self) -> Look:
    draw = textures.PAINTINGS[self._rng.integers(len(textures.PAINTINGS))]
    return self.texture(draw, self.accent(), self.accent())

  def lamp(self, warm: float) -> Look:
    return dataclasses.replace(
      self.paint, tint=(1.0, 0.93 - 0.15 * warm, 0.85 - 0.4 * warm), glow=4.0
    )

  def images(self) -> np.ndarray:
    """Returns the linear albedo [T, n, n, 3] of all textures."""
    # No real surface reflects all light.
    return np.stack(self._images) ** np.float32(2.2) * np.float32(0.85)


def _soften(colour, towards, t):
  return colour * t + towards * (1 - t)
