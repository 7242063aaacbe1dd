"""Procedural rooms with exact cameras and depth, and no download.

Scene i is a pure function of (seed, i): a furnished, lit room and a smooth
camera path through its free space. `raycaster.py` draws it.
"""

import colorsys
import dataclasses
import functools
import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np
import simplejpeg

from xfactor.data import sources
from xfactor.data.sources import raycaster
from xfactor.data.sources.raycaster import BOX, ELLIPSOID, ROOM, TUBE
from xfactor.errors import UserError
from xfactor.geometry import cameras, trajectories, wander

# The eye stays this far from every surface (metres).
MARGIN = 0.35

Rng = np.random.Generator

# ---------------------------------------------------------------- textures
#
# A texture is sRGB [n, n, 3] in 0..1, periodic both ways, rows upwards. Each
# is drawn from resolution-free patterns, so that larger images see the same
# scene in more detail.


@functools.lru_cache(maxsize=64)
def _weights(n: int, cells: int) -> np.ndarray:
  """Smooth periodic interpolation [n, cells] of a lattice."""
  x = (np.arange(n) + 0.5) / n * cells
  i = np.floor(x).astype(int)
  t = x - i
  t = t * t * (3 - 2 * t)
  weights = np.zeros((n, cells), np.float32)
  weights[np.arange(n), i % cells] += 1 - t
  weights[np.arange(n), (i + 1) % cells] += t
  return weights


def _noise(rng: Rng, n: int, columns: int, rows: int, octaves: int = 3):
  """Fractal noise [n, n] of about unit range around 0."""
  total = np.zeros((n, n), np.float32)
  for octave in range(octaves):
    c, r = columns << octave, rows << octave
    lattice = rng.uniform(-1, 1, (r, c)).astype(np.float32)
    # Finer cells than texels would alias; they are drawn but not used, so
    # that the resolution does not change what comes after.
    if max(c, r) <= n:
      total += _weights(n, r) @ lattice @ _weights(n, c).T * 0.6**octave
  return total


def _grid(n: int) -> tuple[np.ndarray, np.ndarray]:
  """Coordinates u [1, n] and v [n, 1] in 0..1."""
  x = ((np.arange(n) + 0.5) / n).astype(np.float32)
  return x[None, :], x[:, None]


def _mix(a, b, t: np.ndarray) -> np.ndarray:
  """Colours [n, n, 3] from `a` (t = 0) to `b` (t = 1)."""
  t = np.clip(t, 0, 1)[..., None]
  return np.asarray(a, np.float32) * (1 - t) + np.asarray(b, np.float32) * t


def _plain(rng, n, a, b):
  """Paint or plaster: faint blotches."""
  return _mix(a, b, 0.5 + 0.35 * _noise(rng, n, 5, 5, 5))


def _cells(rng, n, columns, rows, shift, gap):
  """Running bond: joint mask, per-cell random number, each [n, n]."""
  u, v = _grid(n)
  y = v * rows
  row = np.floor(y).astype(int)
  x = u * columns + shift * row
  column = np.floor(x).astype(int) % columns
  value = rng.uniform(size=(rows, columns)).astype(np.float32)[row, column]
  fx, fy = x % 1, y % 1
  edge = np.minimum(
    np.minimum(fx, 1 - fx) / columns, np.minimum(fy, 1 - fy) / rows
  )
  return edge < gap, value


def _bricks(rng, n, a, b):
  joint, value = _cells(rng, n, 4, 12, 0.5, 0.005)
  face = _mix(a, b, value) * (1 + 0.15 * _noise(rng, n, 16, 16, 3))[..., None]
  mortar = np.float32(0.72) + 0.1 * _noise(rng, n, 16, 16, 2)[..., None]
  return np.where(joint[..., None], mortar, face)


def _tiles(rng, n, a, b):
  count = int(rng.integers(3, 7))
  joint, value = _cells(rng, n, count, count, 0.0, 0.004)
  u, v = _grid(n)
  parity = (np.floor(u * count) + np.floor(v * count)) % 2
  if rng.uniform() < 0.5 or count % 2:
    parity = value * 0.35
  face = _mix(a, b, parity) * (0.94 + 0.12 * value)[..., None]
  face = face * (1 + 0.06 * _noise(rng, n, 8, 8, 3))[..., None]
  return np.where(joint[..., None], np.float32(0.45), face)


def _planks(rng, n, a, b):
  rows = int(rng.integers(6, 13))
  joint, value = _cells(rng, n, 1, rows, 0.37, 0.002)
  grain = _noise(rng, n, 2, 48, 3)
  face = _mix(a, b, value * 0.8 + 0.25 * grain)
  return np.where(joint[..., None], face * 0.45, face)


def _wood(rng, n, a, b):
  _, v = _grid(n)
  rings = v * 7 + 0.9 * _noise(rng, n, 1, 4, 2)
  grain = 0.5 + 0.5 * np.sin(2 * np.pi * rings)
  fibre = 0.3 + 0.35 * _noise(rng, n, 3, 48, 2)
  return _mix(a, b, 0.55 * grain + fibre)


def _stripes(rng, n, a, b):
  u, v = _grid(n)
  count = int(rng.integers(3, 9))
  phase = (u * count) % 1 + 0 * v
  wide = phase < rng.uniform(0.3, 0.6)
  thin = np.abs(phase - 0.8) < 0.03
  t = np.where(wide | thin, 1.0, 0.0) + 0.08 * _noise(rng, n, 8, 8)
  return _mix(a, b, t)


def _dots(rng, n, a, b):
  u, v = _grid(n)
  count = int(rng.integers(3, 8))
  y = v * count * 2
  x = u * count + 0.5 * np.floor(y)
  far = np.hypot(x % 1 - 0.5, (y % 1 - 0.5) / 2)
  return _mix(a, b, (far < rng.uniform(0.12, 0.24)).astype(np.float32))


def _damask(rng, n, a, b):
  u, v = _grid(n)
  count = int(rng.integers(2, 5))
  x, y = 2 * np.pi * count * u, 2 * np.pi * count * v
  k, m = rng.integers(1, 4, 2)
  wave = np.cos(x) * np.cos(y) + 0.6 * np.cos(k * x + np.sin(m * y))
  wave = wave + 0.4 * np.cos(2 * y - np.sin(x))
  return _mix(a, b, np.clip(wave * 4 + 0.5, 0, 1) * 0.8)


def _checks(rng, n, a, b):
  u, v = _grid(n)
  count = 2 * int(rng.integers(1, 5))
  parity = (np.floor(u * count) + np.floor(v * count)) % 2
  return _mix(a, b, parity + 0.1 * _noise(rng, n, 8, 8))


def _plaid(rng, n, a, b):
  u, v = _grid(n)
  count = int(rng.integers(2, 5))
  t = 0.5 * ((u * count) % 1 < 0.45) + 0.5 * ((v * count) % 1 < 0.45)
  line = (np.abs((u * count) % 1 - 0.72) < 0.04) | (
    np.abs((v * count) % 1 - 0.72) < 0.04
  )
  return np.where(line[..., None], np.float32(0.9), _mix(a, b, t))


def _marble(rng, n, a, b):
  u, v = _grid(n)
  warp = _noise(rng, n, 3, 3, 4)
  vein = np.abs(np.sin(2 * np.pi * (u + v) + 4 * warp))
  return _mix(b, a, vein**0.4)


def _fabric(rng, n, a, b):
  u, v = _grid(n)
  weave = np.sin(64 * np.pi * u) * np.sin(64 * np.pi * v)
  return _mix(a, b, 0.4 + 0.25 * weave + 0.4 * _noise(rng, n, 6, 6, 3))


def _concrete(rng, n, a, b):
  blotch = _noise(rng, n, 2, 2, 6)
  speck = _noise(rng, n, 32, 32, 2) > 1.1
  return _mix(a, b, 0.5 + 0.5 * blotch) * np.where(speck, 0.75, 1.0)[..., None]


def _leaves(rng, n, a, b):
  t = _noise(rng, n, 8, 8, 3)
  return _mix(a, b, 0.5 + 1.2 * t) * np.where(t < -0.45, 0.4, 1.0)[..., None]


def _rug(rng, n, a, b):
  u, v = _grid(n)
  ring = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v))
  diamonds = (np.abs((u * 6) % 1 - 0.5) + np.abs((v * 6) % 1 - 0.5)) < 0.28
  middle = np.abs(u - 0.5) + np.abs(v - 0.5)
  bands = np.floor(ring * 28).astype(int)
  t = np.where(bands < 6, np.isin(bands, [1, 3, 4]), diamonds)
  t = np.where((middle < 0.3) & (bands >= 6), np.floor(middle * 20) % 2, t)
  return _mix(a, b, t) * (1 + 0.15 * _noise(rng, n, 32, 32, 2))[..., None]


def _books(rng, n, a, b):
  """Spines of about 24 books side by side."""
  edges = np.cumsum(rng.uniform(0.5, 1.5, 24))
  edges = edges / edges[-1]
  u, v = _grid(n)
  book = np.minimum(np.searchsorted(edges, u[0]), 23)
  colours = _hsv(
    rng.uniform(size=24), rng.uniform(0.2, 0.85, 24), rng.uniform(0.3, 0.95, 24)
  )
  left = np.concatenate([[0], edges])[book]
  across = (u[0] - left) / (edges[book] - left)
  shade = np.where(np.minimum(across, 1 - across) < 0.1, 0.45, 1.0)
  image = np.broadcast_to(colours[book], (n, n, 3)) * shade[None, :, None]
  label = rng.uniform(0.15, 0.8, 24)[book]
  band = np.abs(v - label) < rng.uniform(0.01, 0.06, 24)[book]
  ink = np.where(rng.uniform(size=24) < 0.5, 0.92, 0.15)[book]
  return np.where(band[..., None], (ink * shade)[None, :, None], image)


def _frame(image, colour, width=0.05):
  n = len(image)
  u, v = _grid(n)
  ring = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v))
  mat = np.where((ring < 2 * width)[..., None], np.float32(0.92), image)
  return np.where((ring < width)[..., None], np.float32(colour), mat)


def _landscape(rng, n, a, b):
  u, v = _grid(n)
  sky = _hsv(rng.uniform(0.5, 0.65), 0.5, 0.95)
  dusk = _hsv(rng.uniform(0.0, 0.15), 0.45, 0.98)
  image = _mix(dusk, sky, v * 1.4 - 0.3 + 0.15 * _noise(rng, n, 3, 5, 3))
  sun = np.hypot(u - rng.uniform(0.2, 0.8), v - rng.uniform(0.6, 0.8))
  image = np.where((sun < 0.07)[..., None], np.float32([1, 0.93, 0.7]), image)
  for layer in range(3):
    crest = 0.55 - 0.14 * layer
    crest = crest + 0.16 * _noise(rng, n, 3, 1, 4).mean(0)[None]
    hill = _hsv(rng.uniform(0.2, 0.6), 0.5, 0.75 - 0.2 * layer)
    image = np.where((v < crest)[..., None], hill, image)
  return _frame(image, np.asarray(a) * 0.5)


def _abstract(rng, n, a, b):
  u, v = _grid(n)
  image = np.full((n, n, 3), 0.93, np.float32)
  hue = rng.uniform()
  for _ in range(9):
    x, y = rng.uniform(0, 1, 2)
    w, h = rng.uniform(0.08, 0.4, 2)
    colour = _hsv(
      hue + rng.normal() * 0.15, rng.uniform(0.3, 1), rng.uniform(0.2, 1)
    )
    inside = (np.abs(u - x) < w) & (np.abs(v - y) < h)
    if rng.uniform() < 0.5:
      inside = np.hypot(u - x, v - y) < w * 0.7
    image = np.where(inside[..., None], colour, image)
  return _frame(image, np.asarray(b) * 0.35, 0.035)


def _blobs(rng, n, a, b):
  t = _noise(rng, n, 3, 3, 2)
  bands = np.floor((t + 1.2) * 3.2).astype(int).clip(0, 6)
  colours = _hsv(
    rng.uniform(size=7), rng.uniform(0.3, 0.9, 7), rng.uniform(0.35, 1, 7)
  )
  return _frame(colours[bands], np.asarray(a) * 0.7, 0.04)


def _poster(rng, n, a, b):
  """Lines of print under a block of colour."""
  u, v = _grid(n)
  line = np.floor(v * 24).astype(int)
  word = np.floor(u * 16).astype(int)
  ink = rng.uniform(size=(25, 17))[line, word] < 0.7
  ink = ink & ((v * 24) % 1 < 0.55) & (v < 0.45) & (v > 0.1)
  ink = ink & (u > 0.12) & (u < 0.88)
  head = (v > 0.55) & (v < 0.9) & (u > 0.12) & (u < 0.88)
  paper = np.asarray(b) * 0.9 + np.asarray(a) * 0.1
  image = np.where(ink[..., None], np.float32(0.15), paper)
  wave = np.sin(9 * u + 5 * _noise(rng, n, 2, 2)) > np.cos(11 * v)
  picture = _mix(a, _hsv(rng.uniform(), 0.8, 0.8), wave.astype(np.float32))
  return np.where(head[..., None], picture, image)


def _window(rng, n, a, b):
  """Sky, hills and clouds behind white bars."""
  u, v = _grid(n)
  clouds = np.clip(_noise(rng, n, 2, 4, 4) * 1.2, 0, 1)
  sky = _mix([0.88, 0.93, 0.98], [0.45, 0.65, 0.95], v + 0 * u)
  image = _mix(sky, [1, 1, 1], clouds)
  for layer in range(2):
    crest = 0.36 - 0.12 * layer + 0.12 * _noise(rng, n, 3, 1, 4).mean(0)[None]
    hill = _hsv(rng.uniform(0.2, 0.4), 0.4, 0.6 - 0.18 * layer)
    image = np.where((v < crest)[..., None], hill, image)
  ring = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v))
  bars = (ring < 0.05) | (np.abs(u - 0.5) < 0.025) | (np.abs(v - 0.5) < 0.02)
  return np.where(bars[..., None], np.float32(0.8), image)


def _door(rng, n, a, b):
  u, v = _grid(n)
  x, y = (u * 2) % 1, (v * 3) % 1
  ring = np.minimum(np.minimum(x, 1 - x) / 2, np.minimum(y, 1 - y) / 3 * 2)
  groove = np.abs(ring - 0.08) < 0.012
  knob = np.hypot(u - 0.92, (v - 0.47) * 2.2) < 0.035
  wood = _mix(a, b, 0.3 + 0.3 * _noise(rng, n, 32, 2, 2))
  wood = np.where(groove[..., None], wood * 0.5, wood)
  return np.where(knob[..., None], np.float32([0.85, 0.75, 0.45]), wood)


def _screen(rng, n, a, b):
  u, v = _grid(n)
  image = _mix(a, b, 0.5 + 0.8 * _noise(rng, n, 2, 2, 2))
  panel = (u > 0.1) & (u < 0.55) & (v > 0.2) & (v < 0.85)
  rows = panel & ((v * 14) % 1 < 0.4)
  image = np.where(panel[..., None], np.float32(0.93), image)
  return np.where(rows[..., None], np.float32(0.3), image)


def _ball(rng, n, a, b):
  u, v = _grid(n)
  t = np.floor(u * 6) % 2 + 0 * v
  band = np.abs(v - 0.5) < 0.12
  return np.where(band[..., None], np.float32(0.95), _mix(a, b, t))


_PAINTINGS = (_landscape, _abstract, _blobs, _poster)


def _hsv(h, s, v) -> np.ndarray:
  """sRGB colours [..., 3] from hue (any real), saturation and value."""
  h, s, v = np.broadcast_arrays(h, s, v)
  rgb = [
    colorsys.hsv_to_rgb(*x)
    for x in zip(h.ravel() % 1, s.ravel(), v.ravel(), strict=True)
  ]
  return np.asarray(rgb, np.float32).reshape(*h.shape, 3)


# --------------------------------------------------------- looks and parts


@dataclasses.dataclass(frozen=True)
class Look:
  """A surface: texture number, tint (linear), metres a repeat, glow."""

  texture: int
  tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
  tile: float = 0.0
  glow: float = 0.0

  def tinted(self, colour) -> 'Look':
    tint = tuple(float(c) ** 2.2 for c in colour)
    return dataclasses.replace(self, tint=tint)


@dataclasses.dataclass(frozen=True)
class Part:
  """A primitive of an object; `looks` maps faces to other than `look`."""

  kind: int
  centre: np.ndarray
  half: np.ndarray
  look: Look
  axes: np.ndarray = dataclasses.field(default_factory=lambda: np.eye(3))
  looks: dict[int, Look] = dataclasses.field(default_factory=dict)


def _box(x, y, z, w, d, h, look, **looks) -> Part:
  """A box with its bottom's middle at (x, y, z); `front` is the -y face."""
  faces = {{'front': 3, 'top': 4}[k]: v for k, v in looks.items()}
  return Part(
    BOX, np.array([x, y, z + h / 2]), np.array([w, d, h]) / 2, look, looks=faces
  )


def _tube(x, y, z, r, h, look) -> Part:
  return Part(TUBE, np.array([x, y, z + h / 2]), np.array([r, r, h / 2]), look)


def _blob(x, y, z, rx, ry, rz, look) -> Part:
  return Part(ELLIPSOID, np.array([x, y, z + rz]), np.array([rx, ry, rz]), look)


def _turn(yaw: float) -> np.ndarray:
  c, s = np.cos(yaw), np.sin(yaw)
  return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def _tip(angle: float) -> np.ndarray:
  """Rotation about x."""
  c, s = np.cos(angle), np.sin(angle)
  return np.array([[1.0, 0, 0], [0, c, -s], [0, s, c]])


def _move(parts: list[Part], x, y, z=0.0, yaw=0.0) -> list[Part]:
  """Turns parts about the vertical and shifts them."""
  turn = _turn(yaw)
  return [
    dataclasses.replace(
      p, centre=turn @ p.centre + [x, y, z], axes=turn @ p.axes
    )
    for p in parts
  ]


class Looks:
  """All surfaces of one scene: its palette and its textures."""

  def __init__(self, rng: Rng, resolution: int):
    self._rng, self._resolution = rng, resolution
    self._images: list[np.ndarray] = []
    hue = rng.uniform()
    self.hue = hue
    # Most rooms are muted; a few are not.
    saturation = rng.choice([0.08, 0.16, 0.16, 0.28, 0.5])
    saturation *= rng.uniform(0.6, 1.2)
    wood_hue = rng.uniform(0.04, 0.11)
    wood_value = rng.uniform(0.3, 0.85)
    wood = _hsv(wood_hue, rng.uniform(0.3, 0.65), wood_value)
    other = _hsv(
      wood_hue + rng.normal() * 0.02,
      rng.uniform(0.1, 0.6),
      rng.uniform(0.25, 0.95),
    )
    self.accents = [
      _hsv(hue + shift, rng.uniform(0.12, 0.65), rng.uniform(0.3, 0.9))
      for shift in (0.5, 0.4, 0.08, 0.55, rng.uniform())
    ]
    self.paint = self.texture(_plain, [0.9] * 3, [1.0] * 3, 1.5)
    self.white = self.paint.tinted([0.92, 0.91, 0.88])
    self.dark = self.paint.tinted([0.16, 0.16, 0.18])
    grey = rng.uniform(0.35, 0.8)
    self.metal = self.paint.tinted([grey, grey, grey * 1.03])
    self.wood = self.texture(_wood, wood * 0.75, wood, 0.9)
    self.wood2 = self.texture(_wood, other * 0.75, other, 0.7)
    self.leaf = self.texture(
      _leaves,
      _hsv(0.27, 0.7, 0.3),
      _hsv(rng.uniform(0.2, 0.36), 0.6, 0.65),
      0.5,
    )
    self.fabrics = [
      self.texture(
        rng.choice([_fabric, _fabric, _plaid, _stripes, _checks]),
        self.accents[i],
        self.accents[i] * rng.uniform(0.5, 0.8),
        rng.uniform(0.4, 0.9),
      )
      for i in range(2)
    ]
    self.books = self.texture(_books, wood, other, 0.75)
    style = rng.uniform()
    value = rng.uniform(0.55, 0.95)
    wall = _hsv(hue, saturation * (0.35 if style < 0.5 else 1), value)
    wall_b = _hsv(hue + rng.normal() * 0.06, saturation * 1.3, value * 0.8)
    self.walls = [
      self.texture(
        rng.choice(
          [_plain, _plain, _stripes, _dots, _damask, _planks, _concrete]
        ),
        wall,
        _soften(wall_b, wall, rng.uniform(0.3, 0.9)),
        rng.uniform(0.9, 1.8),
      ),
      self.texture(
        rng.choice(
          [_bricks, _planks, _tiles, _damask, _stripes, _plain, _dots, _marble]
        ),
        self.accents[0],
        wall_b,
        rng.uniform(1.0, 2.0),
      ),
    ]
    floor = rng.choice(
      [_planks, _planks, _planks, _tiles, _checks, _fabric, _concrete, _marble]
    )
    if floor is _planks:
      a, b = wood * 0.7, np.minimum(wood * 1.2, 1)
    elif floor in (_tiles, _checks, _marble):
      a, b = _hsv(hue, 0.08, 0.9), _hsv(hue + 0.5, 0.35, rng.uniform(0.2, 0.7))
    else:
      a = _hsv(hue + 0.4, rng.uniform(0.05, 0.25), rng.uniform(0.3, 0.7))
      b = a * 0.75
    self.floor = self.texture(floor, a, b, rng.uniform(1.4, 2.4))
    self.ceiling = self.texture(
      rng.choice([_plain, _plain, _concrete, _planks]),
      _hsv(hue, 0.05, 0.95),
      _hsv(hue, 0.1, 0.85),
      2.0,
    )

  def texture(self, draw: Callable, a, b, tile: float = 0.0) -> Look:
    """Draws a texture of two colours; `tile` 0 stretches it over a face."""
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
    """Something to make furniture of."""
    looks = [self.wood, self.wood, self.wood2, self.white, self.painted()]
    return looks[self._rng.integers(len(looks))]

  def fabric(self) -> Look:
    return self.fabrics[self._rng.integers(len(self.fabrics))]

  def picture(self) -> Look:
    draw = _PAINTINGS[self._rng.integers(len(_PAINTINGS))]
    return self.texture(draw, self.accent(), self.accent())

  def lamp(self, warm: float) -> Look:
    return dataclasses.replace(
      self.paint, tint=(1.0, 0.93 - 0.15 * warm, 0.85 - 0.4 * warm), glow=4.0
    )

  def images(self) -> np.ndarray:
    """Linear albedo [T, n, n, 3]."""
    # No real surface reflects all light.
    return np.stack(self._images) ** np.float32(2.2) * np.float32(0.85)


def _soften(colour, towards, t):
  return colour * t + towards * (1 - t)


# -------------------------------------------------------------- furniture
#
# Each function returns an object standing at the origin, its back towards +y,
# and its width and depth.

Object = tuple[list[Part], float, float]


def _legs(w, d, h, r, look, round_=True) -> list[Part]:
  places = [
    (sx * (w / 2 - r), sy * (d / 2 - r)) for sx in (-1, 1) for sy in (-1, 1)
  ]
  if round_:
    return [_tube(x, y, 0, r, h, look) for x, y in places]
  return [_box(x, y, 0, 2 * r, 2 * r, h, look) for x, y in places]


def _trinket(rng: Rng, looks: Looks) -> list[Part]:
  """A small thing to stand on a surface."""
  kind = rng.integers(7)
  look = looks.painted()
  s = rng.uniform(0.8, 1.3)
  if kind == 0:  # Vase with a bunch.
    return [
      _tube(0, 0, 0, 0.05 * s, 0.16 * s, look),
      _blob(0, 0, 0.15 * s, 0.11 * s, 0.11 * s, 0.1 * s, looks.leaf),
    ]
  if kind == 1:  # Pile of books.
    parts, z = [], 0.0
    for _ in range(rng.integers(2, 5)):
      h = rng.uniform(0.025, 0.05)
      book = _box(
        0,
        0,
        0,
        rng.uniform(0.15, 0.2),
        rng.uniform(0.2, 0.26),
        h,
        looks.painted(),
      )
      parts += _move([book], 0, 0, z, rng.normal() * 0.25)
      z += h
    return parts
  if kind == 2:  # Ball.
    r = rng.uniform(0.06, 0.11)
    ball = looks.texture(_ball, looks.accent(), looks.accent())
    return [_blob(0, 0, 0, r, r, r, ball)]
  if kind == 3:  # Bowl of fruit.
    fruit = looks.paint.tinted(_hsv(rng.uniform(0, 0.3), 0.85, 0.85))
    return [_tube(0, 0, 0, 0.13 * s, 0.05, look)] + [
      _blob(0.06 * np.cos(a), 0.06 * np.sin(a), 0.03, 0.04, 0.04, 0.04, fruit)
      for a in (0.3, 2.4, 4.5)
    ]
  if kind == 4:  # Lamp.
    return [
      _tube(0, 0, 0, 0.07 * s, 0.03, looks.metal),
      _tube(0, 0, 0, 0.015, 0.3 * s, looks.metal),
      _tube(0, 0, 0.24 * s, 0.1 * s, 0.16 * s, looks.lamp(1.0)),
    ]
  if kind == 5:  # Box.
    w, d, h = rng.uniform(0.1, 0.26, 3)
    return _move(
      [
        _box(
          0,
          0,
          0,
          w,
          d,
          h,
          looks.texture(_checks, looks.accent(), looks.accent(), 0.3),
        )
      ],
      0,
      0,
      0,
      rng.uniform(0, 3),
    )
  return [
    _tube(0, 0, 0, 0.06 * s, 0.03, look),
    _blob(0, 0, 0.03, 0.08 * s, 0.08 * s, 0.13 * s, look),
  ]


def _litter(rng, looks, w, d, z, most) -> list[Part]:
  """Trinkets spread over a surface, in slots so that they do not meet."""
  slots = max(1, int(w / 0.32))
  count = min(slots, int(rng.integers(0, most + 1)))
  parts = []
  for slot in rng.permutation(slots)[:count]:
    x = (slot + 0.5) / slots * w - w / 2
    y = rng.uniform(-0.5, 0.5) * max(0, d - 0.36)
    parts += _move(_trinket(rng, looks), x, y, z, rng.uniform(0, 6))
  return parts


def _chair(rng: Rng, looks: Looks, look=None) -> Object:
  look = look or looks.solid()
  seat = looks.fabric() if rng.uniform() < 0.5 else look
  w, d, h = 0.44, 0.44, 0.44
  parts = _legs(w, d, h, 0.022, look)
  parts.append(_box(0, 0, h, w, d, 0.05, seat))
  top = rng.uniform(0.38, 0.55)
  if rng.uniform() < 0.5:
    parts.append(_box(0, d / 2 - 0.02, h + 0.12, w, 0.035, top - 0.1, seat))
    parts += [
      _box(s * (w / 2 - 0.03), d / 2 - 0.02, h, 0.04, 0.04, 0.2, look)
      for s in (-1, 1)
    ]
  else:
    parts += [
      _box(x, d / 2 - 0.02, h, 0.035, 0.035, top, look)
      for x in (-0.19, 0, 0.19)
    ]
    parts.append(_box(0, d / 2 - 0.02, h + top - 0.08, w, 0.045, 0.1, look))
  return parts, w, d


def _table(rng: Rng, looks: Looks) -> Object:
  look, height = looks.solid(), rng.uniform(0.68, 0.78)
  if rng.uniform() < 0.35:
    r = rng.uniform(0.45, 0.75)
    w = d = 2 * r
    parts = [
      _tube(0, 0, height - 0.04, r, 0.04, look),
      _tube(0, 0, 0, 0.06, height, look),
      _tube(0, 0, 0, r * 0.5, 0.03, look),
    ]
  else:
    w, d = rng.uniform(1.0, 1.9), rng.uniform(0.7, 0.95)
    leg = looks.metal if rng.uniform() < 0.3 else look
    parts = _legs(w, d, height - 0.04, 0.035, leg, rng.uniform() < 0.5)
    parts.append(_box(0, 0, height - 0.04, w, d, 0.04, look))
    parts.append(_box(0, 0, height - 0.12, w - 0.1, d - 0.1, 0.08, look))
  parts += _litter(rng, looks, w * 0.7, d * 0.7, height, 4)
  seat = looks.solid()
  for side in rng.permutation(4)[: rng.integers(0, 4)]:
    chair = _chair(rng, looks, seat)[0]
    away = (d if side % 2 == 0 else w) / 2 + rng.uniform(0.0, 0.25)
    yaw = side * np.pi / 2
    x, y = -np.sin(yaw) * away, np.cos(yaw) * away
    parts += _move(chair, x, y, 0, yaw + rng.normal() * 0.1)
  return parts, w + 1.1, d + 1.1


def _coffee_table(rng, looks) -> Object:
  w, d = rng.uniform(0.7, 1.2), rng.uniform(0.5, 0.7)
  h, look = rng.uniform(0.35, 0.45), looks.solid()
  parts = _legs(w, d, h, 0.03, look)
  parts += [
    _box(0, 0, h, w, d, 0.04, look),
    _box(0, 0, 0.12, w - 0.1, d - 0.1, 0.02, look),
  ]
  return parts + _litter(rng, looks, w * 0.8, d, h + 0.04, 3), w, d


def _bookcase(rng, looks) -> Object:
  w, d = rng.uniform(0.8, 1.6), 0.32
  rows = int(rng.integers(2, 6))
  h = rows * 0.38 + 0.06
  look = looks.solid()
  parts = [_box(s * (w / 2 - 0.015), 0, 0, 0.03, d, h, look) for s in (-1, 1)]
  parts.append(_box(0, d / 2 - 0.01, 0, w, 0.02, h, look))
  for row in range(rows + 1):
    parts.append(_box(0, 0, row * 0.38 + 0.03, w - 0.05, d, 0.025, look))
  for row in range(rows):
    z, x = row * 0.38 + 0.055, -w / 2 + 0.05
    while x < w / 2 - 0.2:
      run = min(rng.uniform(0.15, 0.5), w / 2 - 0.05 - x)
      middle, draw = x + run / 2, rng.uniform()
      if draw < 0.7:
        tone = rng.uniform(0.75, 1, 3)
        parts.append(
          _box(
            middle,
            0.02,
            z,
            run,
            rng.uniform(0.18, 0.24),
            rng.uniform(0.2, 0.3),
            looks.books.tinted(tone),
          )
        )
      elif draw < 0.9:
        parts += _move(_trinket(rng, looks)[:2], middle, 0, z)
      x += run + rng.uniform(0, 0.05)
  return parts + _litter(rng, looks, w, d, h + 0.0, 2), w, d


def _sofa(rng, looks) -> Object:
  seats = int(rng.integers(1, 4))
  w, d, fabric = 0.5 + 0.6 * seats, 0.9, looks.fabric()
  parts = [
    _box(0, 0, 0.12, w, d, 0.2, fabric),
    _box(0, d / 2 - 0.1, 0.12, w, 0.2, rng.uniform(0.6, 0.75), fabric),
  ]
  parts += [
    _box(s * (w / 2 - 0.1), 0, 0.12, 0.2, d, 0.45, fabric) for s in (-1, 1)
  ]
  parts += _legs(w, d, 0.12, 0.03, looks.wood)
  for i in range(seats):
    x = (i - (seats - 1) / 2) * 0.6 * (w - 0.4) / (0.6 * seats + 0.1)
    parts.append(_box(x, -0.08, 0.32, 0.56, d - 0.2, 0.14, fabric))
    if rng.uniform() < 0.7:
      cushion = _box(0, 0, -0.2, 0.4, 0.13, 0.4, looks.painted())
      tilted = dataclasses.replace(cushion, axes=_tip(-0.25))
      parts += _move([tilted], x, 0.16, 0.65, rng.normal() * 0.2)
  return parts, w, d


def _bed(rng, looks) -> Object:
  w, d = rng.uniform(1.0, 1.8), 2.05
  frame, cover = looks.solid(), looks.fabric()
  parts = [
    _box(0, 0, 0.12, w, d, 0.2, frame),
    _box(0, 0, 0.32, w - 0.06, d - 0.06, 0.18, looks.white),
    _box(0, -0.25, 0.34, w + 0.02, d - 0.5, 0.2, cover),
    _box(0, d / 2 - 0.03, 0, w, 0.06, rng.uniform(0.8, 1.2), frame),
  ]
  parts += _legs(w, d, 0.12, 0.04, frame, False)
  pillows = 1 if w < 1.3 else 2
  for i in range(pillows):
    x = (i - (pillows - 1) / 2) * w / 2
    parts.append(_blob(x, d / 2 - 0.32, 0.46, 0.33, 0.22, 0.1, looks.white))
  return parts, w, d


def _cabinet(rng, looks) -> Object:
  w, d, h = rng.uniform(0.6, 1.7), 0.45, rng.uniform(0.5, 1.0)
  body, front = looks.solid(), looks.solid()
  parts = [
    _box(0, 0, 0.06, w, d, h - 0.06, body),
    _box(0, 0, h, w + 0.04, d + 0.03, 0.03, body),
  ]
  parts += _legs(w, d, 0.06, 0.025, looks.dark)
  columns = max(1, round(w / 0.5))
  rows = int(rng.integers(1, 4))
  cw, ch = w / columns, (h - 0.08) / rows
  for c in range(columns):
    for r in range(rows):
      x, z = (c + 0.5) * cw - w / 2, 0.07 + r * ch
      parts.append(_box(x, -d / 2, z + 0.01, cw - 0.03, 0.03, ch - 0.02, front))
      parts.append(
        _blob(x, -d / 2 - 0.03, z + ch / 2, 0.02, 0.02, 0.02, looks.metal)
      )
  return parts + _litter(rng, looks, w, d, h + 0.03, 3), w, d


def _wardrobe(rng, looks) -> Object:
  w, d, h = rng.uniform(0.9, 1.7), 0.58, rng.uniform(1.8, 2.1)
  body = looks.solid()
  front = looks.texture(_door, looks.accent(), looks.accent())
  parts = [_box(0, 0, 0, w, d, h, body)]
  for s in (-1, 1):
    parts.append(
      _box(
        s * w / 4, -d / 2, 0.08, w / 2 - 0.03, 0.03, h - 0.12, body, front=front
      )
    )
  return parts, w, d


def _desk(rng, looks) -> Object:
  w, d, h = rng.uniform(1.1, 1.6), 0.65, 0.73
  look = looks.solid()
  parts = [
    _box(0, 0, h, w, d, 0.035, look),
    _box(w / 2 - 0.22, 0, 0.05, 0.4, d - 0.1, h - 0.05, looks.solid()),
  ]
  parts += _legs(w, d, h, 0.025, looks.metal)
  picture = looks.texture(_screen, looks.accent(), looks.accent())
  screen = dataclasses.replace(picture, glow=0.8)
  parts += [
    _box(-0.1, 0.15, h + 0.035, 0.2, 0.16, 0.02, looks.dark),
    _box(-0.1, 0.17, h + 0.05, 0.04, 0.04, 0.2, looks.dark),
    _box(-0.1, 0.15, h + 0.16, 0.6, 0.035, 0.36, looks.dark),
    _box(-0.1, 0.13, h + 0.18, 0.56, 0.005, 0.32, screen),
    _box(-0.1, -0.15, h + 0.035, 0.42, 0.14, 0.02, looks.dark),
  ]
  parts += _move(_trinket(rng, looks), w / 2 - 0.2, 0.1, h + 0.035)
  turned = np.pi + rng.normal() * 0.3
  parts += _move(_chair(rng, looks)[0], -0.1, -0.5, 0, turned)
  return parts, w, d + 0.8


def _plant(rng, looks) -> Object:
  r, h = rng.uniform(0.14, 0.22), rng.uniform(0.25, 0.45)
  parts = [
    _tube(0, 0, 0, r, h, looks.painted()),
    _tube(0, 0, h - 0.02, r * 0.9, 0.03, looks.dark),
  ]
  tall = rng.uniform(0.3, 0.9)
  parts.append(_tube(0, 0, h, 0.025, tall, looks.wood))
  for _ in range(rng.integers(3, 6)):
    x, y = rng.normal(size=2) * 0.13
    size = rng.uniform(0.12, 0.28, 3)
    parts.append(
      _blob(
        x,
        y,
        h + tall * rng.uniform(0.4, 1.0),
        *size,
        looks.leaf.tinted(rng.uniform(0.75, 1, 3)),
      )
    )
  return parts, 0.7, 0.7


def _floor_lamp(rng, looks) -> Object:
  h = rng.uniform(1.3, 1.7)
  return (
    [
      _tube(0, 0, 0, 0.16, 0.03, looks.metal),
      _tube(0, 0, 0, 0.018, h, looks.metal),
      _tube(0, 0, h, 0.2, 0.28, looks.lamp(0.8)),
    ],
    0.45,
    0.45,
  )


def _boxes(rng, looks) -> Object:
  parts, z, size = [], 0.0, rng.uniform(0.45, 0.65)
  card = looks.texture(_poster, looks.accent(), _hsv(0.09, 0.45, 0.75))
  for _ in range(rng.integers(1, 4)):
    w, d, h = size * rng.uniform(0.7, 1, 3)
    parts += _move([_box(0, 0, 0, w, d, h, card)], 0, 0, z, rng.normal() * 0.3)
    z, size = z + h, size * 0.8
  return parts, 0.75, 0.75


def _balls(rng, looks) -> Object:
  parts = []
  for i in range(rng.integers(1, 4)):
    r, angle = rng.uniform(0.12, 0.26), 2.1 * i + rng.uniform(0, 0.5)
    look = looks.texture(
      rng.choice([_ball, _checks, _dots, _stripes]),
      looks.accent(),
      looks.accent(),
    )
    ball = _blob(0, 0, -r, r, r, r, look)
    ball = dataclasses.replace(ball, axes=_tip(rng.uniform(0, 3)))
    parts += _move(
      [ball], 0.3 * np.cos(angle), 0.3 * np.sin(angle), r, rng.uniform(0, 6)
    )
  return parts, 1.0, 1.0


def _pedestal(rng, looks) -> Object:
  h, w = rng.uniform(0.6, 1.1), rng.uniform(0.3, 0.45)
  stone = looks.texture(_marble, [0.93] * 3, _hsv(looks.hue, 0.2, 0.5), 0.8)
  parts = [
    _box(0, 0, 0, w + 0.1, w + 0.1, 0.08, stone),
    _box(0, 0, 0.08, w, w, h - 0.08, stone),
  ]
  look, s = looks.painted(), rng.uniform(0.7, 1.1)
  kind = rng.integers(4)
  if kind == 0:  # A figure of balls.
    parts += [
      _blob(0, 0, h + z * s, r * s, r * s, r * s, look)
      for z, r in ((0, 0.16), (0.26, 0.12), (0.46, 0.08))
    ]
  elif kind == 1:  # An urn.
    parts += [
      _tube(0, 0, h, 0.08 * s, 0.1, look),
      _blob(0, 0, h + 0.06, 0.17 * s, 0.17 * s, 0.22 * s, look),
      _tube(0, 0, h + 0.3 * s, 0.07 * s, 0.22 * s, look),
    ]
  elif kind == 2:  # Crossed slabs.
    slab = _box(0, 0, 0, 0.1, 0.12, 0.55 * s, look)
    parts += _move([slab], 0, 0, h)
    tilted = dataclasses.replace(
      _box(0, 0, h + 0.25 * s, 0.09, 0.1, 0.4 * s, looks.painted()),
      axes=_turn(0.8) @ _tip(1.0),
    )
    parts.append(tilted)
  else:
    parts.append(
      _blob(
        0,
        0,
        h,
        0.2 * s,
        0.2 * s,
        0.2 * s,
        looks.texture(_marble, looks.accent(), [0.95] * 3),
      )
    )
  return parts, w + 0.2, w + 0.2


def _column(rng, looks) -> Object:
  r = rng.uniform(0.15, 0.26)
  look = looks.walls[1] if rng.uniform() < 0.5 else looks.white
  return (
    [_tube(0, 0, 0, r, 5.0, look), _box(0, 0, 0, 2.6 * r, 2.6 * r, 0.14, look)],
    2.6 * r,
    2.6 * r,
  )


def _stool(rng, looks) -> Object:
  h, look = rng.uniform(0.42, 0.7), looks.solid()
  parts = _legs(0.3, 0.3, h, 0.02, look)
  parts += [
    _tube(0, 0, h, 0.19, 0.06, looks.fabric()),
    _tube(0, 0, h * 0.35, 0.15, 0.02, look),
  ]
  return parts, 0.4, 0.4


def _television(rng, looks) -> Object:
  parts, w, d = _cabinet(rng, looks)
  h = max(p.centre[2] + p.half[2] for p in parts[:2])
  parts = [p for p in parts if p.centre[2] - p.half[2] < h - 0.01]
  picture = looks.texture(
    rng.choice([_landscape, _screen, _blobs]), looks.accent(), looks.accent()
  )
  screen = dataclasses.replace(picture, glow=0.9)
  s = min(1.2, w * 0.9)
  return (
    parts
    + [
      _box(0, 0.05, h, s * 0.4, 0.2, 0.03, looks.dark),
      _box(0, 0.05, h + 0.03, s, 0.05, s * 0.58, looks.dark),
      _box(0, 0.02, h + 0.05, s - 0.05, 0.01, s * 0.58 - 0.05, screen),
    ],
    w,
    d,
  )


def _counter(rng, looks) -> Object:
  w, d, h = rng.uniform(1.4, 2.4), 0.6, 0.9
  body, top = (
    looks.solid(),
    looks.texture(
      rng.choice([_marble, _concrete]), looks.accent(), [0.9] * 3, 1.0
    ),
  )
  parts = [
    _box(0, 0.03, 0, w, d - 0.06, 0.1, looks.dark),
    _box(0, 0, 0.1, w, d, h - 0.14, body),
    _box(0, -0.01, h - 0.04, w + 0.02, d + 0.02, 0.04, top),
  ]
  doors = round(w / 0.55)
  for i in range(doors):
    x = (i + 0.5) * w / doors - w / 2
    parts.append(_box(x, -d / 2, 0.13, w / doors - 0.03, 0.03, h - 0.2, body))
    handle = _box(x, -d / 2 - 0.02, h - 0.14, 0.14, 0.02, 0.02, looks.metal)
    parts.append(handle)
  parts.append(_box(0, d / 2 - 0.18, h + 0.6, w, 0.34, 0.6, looks.solid()))
  return parts + _litter(rng, looks, w, d, h, 4), w, d


_AT_WALLS = (
  _bookcase,
  _sofa,
  _cabinet,
  _wardrobe,
  _desk,
  _television,
  _counter,
  _bed,
  _bookcase,
  _cabinet,
)
_ANYWHERE = (
  _table,
  _coffee_table,
  _plant,
  _floor_lamp,
  _boxes,
  _balls,
  _pedestal,
  _column,
  _stool,
  _table,
  _chair,
  _sofa,
  _plant,
)
# What a room is for: furniture at walls, furniture anywhere. None: all of it.
_THEMES = (
  None,
  None,
  (
    (_sofa, _television, _bookcase, _cabinet),
    (_coffee_table, _plant, _floor_lamp, _stool, _sofa),
  ),
  ((_bed, _wardrobe, _cabinet, _desk), (_plant, _floor_lamp, _stool, _chair)),
  ((_bookcase, _bookcase, _desk, _bookcase), (_table, _floor_lamp, _sofa)),
  ((_counter, _cabinet, _bookcase), (_table, _table, _stool, _plant)),
  ((_cabinet,), (_pedestal, _pedestal, _column, _pedestal, _stool, _plant)),
  ((_cabinet, _bookcase, _bed), (_balls, _boxes, _balls, _stool, _boxes)),
)


# ------------------------------------------------------------------ rooms


class _Room:
  """A scene under construction: parts, lights and what is taken."""

  def __init__(self, rng: Rng, looks: Looks):
    self.rng, self.looks = rng, looks
    self.size = np.array(
      [rng.uniform(3.6, 7.5), rng.uniform(3.6, 7.5), rng.uniform(2.4, 3.5)]
    )
    self.groups: list[list[Part]] = []
    self.lights: list[raycaster.Light] = []
    self.focuses: list[np.ndarray] = []
    self._taken: list[tuple[float, float, float, float]] = []
    self._wall_taken: list[tuple[int, float, float, float, float]] = []

  def add(self, parts: list[Part]) -> None:
    self.groups.append(parts)

  # A wall is 0..3 for +y, -x, -y, +x: what stands at +y, turned by quarters.

  def wall_length(self, wall: int) -> float:
    return self.size[wall % 2]

  def at_wall(self, wall: int, along: float, off: float) -> tuple[float, ...]:
    """x, y and yaw of a point `off` from a wall, `along` from its middle."""
    yaw = wall * np.pi / 2
    x, y, _ = _turn(yaw) @ [along, self.size[1 - wall % 2] / 2 - off, 0]
    return x, y, yaw

  def claim_floor(self, x, y, w, d, gap=0.08) -> bool:
    """Takes a rectangle of the floor unless some of it is taken."""
    box = (x - w / 2 - gap, y - d / 2 - gap, x + w / 2 + gap, y + d / 2 + gap)
    for a in self._taken:
      if box[0] < a[2] and a[0] < box[2] and box[1] < a[3] and a[1] < box[3]:
        return False
    self._taken.append(box)
    return True

  def fits_wall(self, wall, along, w, low, high) -> bool:
    """Whether a wall is free, `low` to `high` over a width `w`."""
    a, b = along - w / 2, along + w / 2
    if max(-a, b) > self.wall_length(wall) / 2:
      return False
    return not any(
      other == wall and a < d and c < b and low < top and bottom < high
      for other, c, d, bottom, top in self._wall_taken
    )

  def claim_wall(self, wall, along, w, low, high) -> bool:
    """Takes a rectangle of a wall unless some of it is taken."""
    fits = self.fits_wall(wall, along, w, low, high)
    if fits:
      self._wall_taken.append((wall, along - w / 2, along + w / 2, low, high))
    return fits


def _shape(room: _Room) -> None:
  """Corner blocks, beams, sloping ceilings, skirting boards."""
  rng, looks = room.rng, room.looks
  width, depth, height = room.size
  look = room.looks.walls[int(rng.integers(2))]
  kind = rng.integers(7)
  if kind <= 1 and min(width, depth) > 4.2:  # L-shaped: a block in a corner.
    for _ in range(1 + (rng.uniform() < 0.3)):
      w, d = rng.uniform(0.8, width * 0.4), rng.uniform(0.8, depth * 0.4)
      x = rng.choice([-1, 1]) * (width - w) / 2
      y = rng.choice([-1, 1]) * (depth - d) / 2
      if room.claim_floor(x, y, w, d, 0.0):
        room.add([_box(x, y, 0, w, d, height, look)])
        for wall in range(4):
          # The block in the frame where this wall is the one at +y.
          along, off, _ = _turn(-wall * np.pi / 2) @ [x, y, 0]
          if off > 0:
            extent = w if wall % 2 == 0 else d
            room.claim_wall(wall, along, extent - 0.1, 0.0, height)
  elif kind == 2:  # Beams under the ceiling.
    count = int(rng.integers(2, 6))
    beam = looks.wood if rng.uniform() < 0.7 else looks.white
    room.add(
      [
        _box(
          0,
          (i + 0.5) / count * depth - depth / 2,
          height - 0.2,
          width,
          0.16,
          0.2,
          beam,
        )
        for i in range(count)
      ]
    )
  elif kind == 3:  # Attic: the ceiling slopes on one side or two.
    slope = rng.uniform(0.5, 0.9)
    for side in (1, -1)[: 1 + (rng.uniform() < 0.5)]:
      plank = Part(
        BOX,
        np.array([0, side * depth / 2, height]),
        np.array([width / 2, 1.0, 0.55]),
        looks.ceiling,
        axes=_tip(-side * slope),
      )
      room.add([plank])
  elif kind == 4:  # A counter-high wall that juts into the room.
    w, x = rng.uniform(0.8, 1.6), rng.uniform(-0.25, 0.25) * width
    y = depth / 2 - w / 2
    room.claim_floor(x, y, 0.16, w)
    room.claim_wall(0, x, 0.16, 0.0, height)
    h = rng.choice([1.1, height])
    room.add(
      [
        _box(x, y, 0, 0.14, w, h, look),
        _box(x, y, h - 0.01, 0.2, w + 0.03, 0.05, looks.wood),
      ]
    )
  if rng.uniform() < 0.7:
    board = looks.wood if rng.uniform() < 0.4 else looks.white
    h = rng.uniform(0.07, 0.16)
    room.add(
      [_box(0, s * depth / 2, 0, width, 0.04, h, board) for s in (-1, 1)]
      + [_box(s * width / 2, 0, 0, 0.04, depth, h, board) for s in (-1, 1)]
    )


def _openings(room: _Room) -> None:
  """Windows, which shine, and doors."""
  rng, looks, height = room.rng, room.looks, room.size[2]
  sky = dataclasses.replace(
    looks.texture(_window, looks.accent(), looks.accent()), glow=2.2
  )
  count = int(rng.choice([0, 1, 1, 2, 2, 3]))
  sunny = rng.uniform() < 0.6
  for _ in range(count):
    wall = int(rng.integers(4))
    w, h = rng.uniform(0.8, 1.8), rng.uniform(0.9, 1.5)
    low = rng.uniform(0.75, 1.0)
    h = min(h, height - low - 0.25)
    along = rng.uniform(-0.35, 0.35) * room.wall_length(wall)
    if not room.claim_wall(wall, along, w + 0.4, low - 0.1, height):
      continue
    x, y, yaw = room.at_wall(wall, along, 0.0)
    parts = [
      _box(0, -0.012, low, w, 0.024, h, sky),
      _box(0, -0.05, low - 0.06, w + 0.2, 0.16, 0.06, looks.white),
      _box(0, -0.02, low + h, w + 0.16, 0.05, 0.08, looks.white),
    ]
    parts += [
      _box(s * (w / 2 + 0.04), -0.02, low, 0.08, 0.05, h, looks.white)
      for s in (-1, 1)
    ]
    if rng.uniform() < 0.45:
      curtain, drop = looks.fabric(), low + h + 0.1
      start = 0.05 if rng.uniform() < 0.5 else low - 0.2
      for s in (-1, 1):
        parts += [
          _tube(
            s * (w / 2 + 0.05 + 0.075 * i),
            -0.1,
            start,
            0.045,
            drop - start,
            curtain,
          )
          for i in range(3)
        ]
      rod = Part(
        TUBE,
        np.array([0, -0.1, drop]),
        np.array([0.015, 0.015, w / 2 + 0.35]),
        looks.metal,
        axes=_turn(np.pi / 2) @ _tip(np.pi / 2),
      )
      parts.append(rod)
    room.add(_move(parts, x, y, 0, yaw))
    turn = _turn(yaw)
    inwards = turn @ [0, -1.0, 0]
    centre = np.array([x, y, low + h / 2]) + inwards * 0.16
    u, v = turn @ [w / 2, 0, 0], np.array([0, 0, h / 2])
    cool = np.array([0.85, 0.95, 1.1]) * w * h * rng.uniform(3, 6)
    room.lights.append(raycaster.Light(centre, u, v, cool, inwards))
    if sunny:
      away = turn @ [rng.uniform(-0.8, 0.8), 1.0, 0]
      away[2] = rng.uniform(0.45, 1.1)
      room.lights.append(
        raycaster.Light(
          centre,
          u,
          v,
          np.array([1.0, 0.87, 0.68]) * rng.uniform(3, 6),
          inwards,
          away / np.linalg.norm(away),
        )
      )
      sunny = False
  if rng.uniform() < 0.6:
    wall = int(rng.integers(4))
    along = rng.uniform(-0.35, 0.35) * room.wall_length(wall)
    if room.claim_wall(wall, along, 1.1, 0.0, 2.2):
      x, y, yaw = room.at_wall(wall, along, 0.0)
      room.claim_floor(*(np.array([x, y]) * 0.98), 1.1, 1.1)
      paint = looks.accent()
      door = looks.texture(_door, paint, paint * 0.85)
      parts = [
        _box(0, -0.02, 0, 0.86, 0.04, 2.03, looks.wood, front=door),
        _box(0, -0.02, 2.03, 1.04, 0.07, 0.09, looks.white),
      ]
      parts += [
        _box(s * 0.475, -0.02, 0, 0.09, 0.07, 2.03, looks.white)
        for s in (-1, 1)
      ]
      room.add(_move(parts, x, y, 0, yaw))


def _furnish(room: _Room) -> None:
  """Furniture at the walls, in the room, and pictures on the walls."""
  rng, looks = room.rng, room.looks
  width, depth, _ = room.size
  theme = _THEMES[rng.integers(len(_THEMES))] or (_AT_WALLS, _ANYWHERE)
  for _ in range(int(rng.integers(3, 8))):
    parts, w, d = theme[0][rng.integers(len(theme[0]))](rng, looks)
    tall = max(p.centre[2] + p.half[2] for p in parts)
    for _ in range(4):
      wall = int(rng.integers(4))
      along = rng.uniform(-0.5, 0.5) * (room.wall_length(wall) - w - 0.2)
      x, y, yaw = room.at_wall(wall, along, d / 2 + 0.07)
      fw, fd = (w, d) if wall % 2 == 0 else (d, w)
      if room.fits_wall(wall, along, w, 0.0, tall) and room.claim_floor(
        x, y, fw, fd
      ):
        room.claim_wall(wall, along, w, 0.0, tall)
        room.add(_move(parts, x, y, 0, yaw))
        room.focuses.append(np.array([x, y, min(tall, 1.3) * 0.7]))
        break
  area = width * depth
  for _ in range(int(rng.integers(2, 3 + area / 7))):
    parts, w, d = theme[1][rng.integers(len(theme[1]))](rng, looks)
    yaw = (
      rng.uniform(0, 2 * np.pi)
      if rng.uniform() < 0.5
      else (rng.integers(4) * np.pi / 2)
    )
    c, s = abs(np.cos(yaw)), abs(np.sin(yaw))
    fw, fd = c * w + s * d, s * w + c * d
    for _ in range(5):
      x = rng.uniform(-0.5, 0.5) * max(0, width - fw - 0.2)
      y = rng.uniform(-0.5, 0.5) * max(0, depth - fd - 0.2)
      if room.claim_floor(x, y, fw, fd):
        room.add(_move(parts, x, y, 0, yaw))
        tall = max(p.centre[2] + p.half[2] for p in parts)
        room.focuses.append(np.array([x, y, min(tall, 1.3) * 0.7]))
        break
  if rng.uniform() < 0.6:
    w, d = rng.uniform(1.4, 2.6), rng.uniform(1.0, 2.0)
    x, y = rng.uniform(-0.15, 0.15, 2) * [width, depth]
    rug = looks.texture(
      rng.choice([_rug, _rug, _stripes, _plaid, _damask]),
      looks.accent(),
      looks.accent(),
    )
    if rng.uniform() < 0.25:
      part = _tube(0, 0, 0, d / 2, 0.015, rug)
    else:
      part = _box(0, 0, 0, w, d, 0.015, rug)
    room.add(_move([part], x, y, 0, rng.choice([0, np.pi / 2])))
  pictures = [looks.picture() for _ in range(4)]
  for _ in range(int(rng.integers(4, 14))):
    wall = int(rng.integers(4))
    w, h = rng.uniform(0.35, 1.1), rng.uniform(0.35, 0.9)
    along = rng.uniform(-0.45, 0.45) * room.wall_length(wall)
    z = rng.uniform(1.15, 1.5)
    if z + h < room.size[2] - 0.15 and room.claim_wall(
      wall, along, w + 0.1, z, z + h
    ):
      x, y, yaw = room.at_wall(wall, along, 0.0)
      look = pictures[rng.integers(4)]
      room.add(
        _move(
          [_box(0, -0.02, z, w, 0.04, h, looks.dark, front=look)], x, y, 0, yaw
        )
      )


def _illuminate(room: _Room) -> None:
  """Lamps under the ceiling, and a light for each glowing lamp below."""
  rng, looks = room.rng, room.looks
  width, depth, height = room.size
  warm = rng.uniform()
  columns = 1 if width < 5.5 else 2
  places = [(c + 0.5) / columns * width - width / 2 for c in range(columns)]
  style, drop = rng.integers(3), rng.uniform(0.25, 0.7)
  # By day the lamps are often off, and the windows shape the light.
  day = len(room.lights) > 0
  power = rng.uniform(3, 9) * height / columns
  if day:
    power *= rng.choice([0.05, 0.3, 1.0])
  for x in places:
    y = rng.uniform(-0.2, 0.2) * depth
    lamp = looks.lamp(warm)
    if style == 0:  # A globe on a cord.
      r, z = rng.uniform(0.12, 0.22), height - drop
      parts = [
        _tube(x, y, z, 0.012, drop, looks.dark),
        _blob(x, y, z - r, r, r, r, lamp),
      ]
    elif style == 1:  # A flat disc.
      z = height - 0.1
      parts = [_tube(x, y, z, rng.uniform(0.18, 0.3), 0.1, lamp)]
    else:  # A shade.
      r, z = rng.uniform(0.2, 0.32), height - drop
      parts = [
        _tube(x, y, z, 0.012, drop, looks.dark),
        _tube(x, y, z - 0.1, r, 0.2, lamp),
      ]
    room.add(parts)
    room.lights.append(
      raycaster.Light(
        np.array([x, y, z - 0.15]),
        np.array([0.15, 0, 0]),
        np.array([0, 0.15, 0]),
        np.array(lamp.tint) * power,
        np.zeros(3),
      )
    )
  for part in [p for group in room.groups for p in group]:
    is_lamp = part.kind == TUBE and part.look.glow > 1
    if is_lamp and part.centre[2] < height - 0.8 and len(room.lights) < 6:
      room.lights.append(
        raycaster.Light(
          part.centre,
          np.array([0.1, 0, 0]),
          np.array([0, 0.1, 0]),
          np.array(part.look.tint) * rng.uniform(0.6, 1.8),
          np.zeros(3),
        )
      )


def build_scene(
  seed: int, index: int, resolution: int
) -> tuple[raycaster.Scene, list[np.ndarray]]:
  """Builds scene `index`.

  Args:
    seed: Of the data set.
    index: Of the scene.
    resolution: Texels a side of a texture, a power of two; it changes nothing
      else.

  Returns:
    The scene, with the floor at z = 0, and points worth looking at.
  """
  rng = np.random.default_rng([seed, index, 0])
  looks = Looks(rng, resolution)
  room = _Room(rng, looks)
  _shape(room)
  _openings(room)
  _furnish(room)
  _illuminate(room)
  accent_wall = int(rng.integers(4)) if rng.uniform() < 0.6 else None
  walls = {f: looks.walls[f == accent_wall] for f in range(4)}
  shell = Part(
    ROOM,
    room.size * [0, 0, 0.5],
    room.size / 2,
    looks.walls[0],
    looks={**walls, 4: looks.ceiling, 5: looks.floor},
  )
  parts = [(0, shell)] + [
    (i + 1, part) for i, group in enumerate(room.groups) for part in group
  ]
  faces = [[p.looks.get(f, p.look) for f in range(6)] for _, p in parts]
  f32 = np.float32

  def light32(light):
    values = {
      k: None if v is None else np.asarray(v, f32)
      for k, v in vars(light).items()
    }
    return raycaster.Light(**values)

  scene = raycaster.Scene(
    kind=np.array([p.kind for _, p in parts]),
    centre=np.array([p.centre for _, p in parts], f32),
    half=np.array([p.half for _, p in parts], f32),
    rotation=np.array([p.axes.T for _, p in parts], f32),
    group=np.array([group for group, _ in parts]),
    glow=np.array([p.look.glow for _, p in parts], f32),
    tint=np.array([[look.tint for look in row] for row in faces], f32),
    texture=np.array([[look.texture for look in row] for row in faces]),
    tile=np.array([[look.tile for look in row] for row in faces], f32),
    albedo=looks.images(),
    lights=tuple(light32(light) for light in room.lights),
    key=float(rng.uniform(0.17, 0.28)),
  )
  return scene, room.focuses


# ------------------------------------------------------------------ paths


def _score(scene, eyes, targets, half_view: float) -> float:
  """How much there is to see on a path: the share of rays, 25 at each of four
  moments, that meet something other than the room, at a decent distance."""
  moments = np.linspace(0, len(eyes) - 1, 4).astype(int)
  pose = cameras.look_at(eyes[moments], targets[moments], _UP)
  focal = 0.5 / half_view
  intrinsics = np.tile([focal, focal, 0.5, 0.5], (4, 1))
  origins, rays = cameras.pixel_rays(intrinsics, pose, 5, 5)
  t, group = raycaster.first_seen(
    scene, origins.reshape(-1, 3), rays.reshape(-1, 3)
  )
  objects = np.mean((group > 0) & (t > 0.6))
  distinct = len(np.unique(group))
  too_near = np.mean(t < 1.1)
  return float(0.7 * objects + 0.05 * distinct - 2 * too_near)


_UP = np.array([0.0, 0.0, 1.0])


def choose_path(
  scene: raycaster.Scene,
  focuses: list[np.ndarray],
  rng: Rng,
  half_view: float,
  kinds: Sequence[str],
) -> trajectories.Path:
  """Draws a path that keeps `MARGIN` from everything and sees something.

  Args:
    scene: Where the path goes.
    focuses: Points worth looking at.
    rng: Source of the draw.
    half_view: Tangent of half the field of view.
    kinds: Of paths; tried in random order.
  """
  kinds = list(rng.permutation(list(kinds)))
  low = scene.centre[0] - scene.half[0] + MARGIN
  high = scene.centre[0] + scene.half[0] - MARGIN
  starts = rng.uniform(low, high, (512, 3))
  starts[:, 2] = rng.uniform(0.7, min(1.9, high[2]), 512)
  free = raycaster.clearance(scene, starts)
  safest, starts = starts[free.argmax()], starts[free > MARGIN + 0.1]
  centre = np.array([0.0, 0.0, 1.0])
  times = np.linspace(0, 1, 40)
  # Each kind has its chance before the next, so that the hard ones are not
  # crowded out by those that fit anywhere.
  for kind in kinds if len(starts) else ():
    best, best_score = None, 0.5
    for attempt in range(14):
      start = starts[rng.integers(len(starts))]
      focus = centre
      if focuses:
        focus = focuses[rng.integers(len(focuses))] + rng.normal(size=3) * 0.15
      away = np.linalg.norm((focus - start)[:2])
      reach = rng.uniform(1.4, 3.6) * (1 - attempt / 28)
      if not 1.2 < away < 4.5:
        continue
      path = trajectories.random_path(kind, rng, start, focus, reach)
      eyes, targets = path(times)
      if raycaster.clearance(scene, eyes).min() < MARGIN:
        continue
      score = _score(scene, eyes, targets, half_view)
      if score > best_score:
        best, best_score = path, score
      if score > 0.85:
        break
    if best is not None:
      return best
  return _safe_path(scene, safest, focuses[0] if focuses else centre)


def wander_in_room(
  scene: raycaster.Scene,
  rng: Rng,
  frames: int,
  freedoms: Sequence[str],
  *,
  turn: float,
  move: float,
) -> wander.Path:
  """Draws a path that wanders and keeps `MARGIN` from everything.

  Where the room leaves no space, the camera moves less far.

  Args:
    scene: Where the path goes.
    rng: Source of the draw.
    frames: Frames of the path.
    freedoms: Degrees of freedom that wander.
    turn: As of `wander.wander`.
    move: As of `wander.wander`.
  """
  low = scene.centre[0] - scene.half[0] + MARGIN
  high = scene.centre[0] + scene.half[0] - MARGIN
  starts = rng.uniform(low, high, (512, 3))
  starts[:, 2] = rng.uniform(0.9, min(1.8, high[2]), 512)
  free = raycaster.clearance(scene, starts)
  starts = starts[np.argsort(-free)]
  roomy = max(int((free > MARGIN + 0.15).sum()), 1)
  best, best_score = None, -np.inf
  tried = 0
  for attempt in range(64):
    path = wander.wander(
      rng,
      frames,
      freedoms,
      eye=starts[rng.integers(roomy)],
      yaw=rng.uniform(0, 2 * np.pi),
      turn=turn,
      move=move * 0.95**attempt,
    )
    eyes = np.unique(path.eyes, axis=0)
    if raycaster.clearance(scene, eyes).min() < MARGIN:
      continue
    score = -_too_near(scene, path)
    if score > best_score:
      best, best_score = path, score
    tried += 1
    if tried == 4:
      break
  if best is None:
    best = wander.wander(
      rng, frames, freedoms, eye=starts[0], yaw=0.0, turn=turn, move=0.0
    )
  return best


def _too_near(scene: raycaster.Scene, path: wander.Path) -> float:
  """The share of rays, at eight moments, that end within a metre."""
  moments = np.linspace(0, len(path.yaw) - 1, 8).astype(int)
  pose = path.world_to_camera()[moments]
  intrinsics = np.tile([0.8, 0.8, 0.5, 0.5], (8, 1))
  origins, rays = cameras.pixel_rays(intrinsics, pose, 4, 4)
  t, _ = raycaster.first_seen(
    scene, origins.reshape(-1, 3), rays.reshape(-1, 3)
  )
  return float(np.mean(t < 1.0))


def _safe_path(scene, start, focus) -> trajectories.Path:
  """A short straight move about the place with the most room."""
  away = (focus - start) * [1, 1, 0]
  side = np.cross(away / np.linalg.norm(away), _UP)
  free = raycaster.clearance(scene, start[None])[0]
  half = side * max(0.0, free - MARGIN)
  return lambda u: (
    trajectories.line(u, start - half, start + half),
    np.tile(focus, (len(u), 1)),
  )


# ----------------------------------------------------------------- source


def encode_depth(depth: np.ndarray) -> bytes:
  """PNG, 16-bit grey, of depth in metres [H, W], in thousandths.

  Pillow does the same in several times the time.
  """
  millimetres = np.clip(np.rint(depth * 1000), 0, 65535).astype('>u2')
  height, width = millimetres.shape
  rows = millimetres.view(np.uint8).reshape(height, 2 * width)
  # Filter 2, the difference to the row above, halves the size.
  body = np.full((height, 2 * width + 1), 2, np.uint8)
  body[:, 1:] = rows
  body[1:, 1:] -= rows[:-1]

  def chunk(name: bytes, data: bytes) -> bytes:
    crc = struct.pack('>I', zlib.crc32(name + data))
    return struct.pack('>I', len(data)) + name + data + crc

  header = struct.pack('>IIBBBBB', width, height, 16, 0, 0, 0, 0)
  return b''.join(
    [
      b'\x89PNG\r\n\x1a\n',
      chunk(b'IHDR', header),
      chunk(b'IDAT', zlib.compress(body.tobytes(), 1)),
      chunk(b'IEND', b''),
    ]
  )


def _fraction(index: int) -> float:
  """A fixed number in 0..1 for a scene."""
  digest = hashlib.sha256(f'{index:06d}'.encode()).digest()
  return int.from_bytes(digest[:8], 'big') / 2**64


# The likeliest test scene of the first ten is always one, so that small data
# sets have something to test on.
_ALWAYS_TEST = min(range(10), key=_fraction)


@dataclasses.dataclass(frozen=True)
class Drawn(sources.Source):
  """Scenes that are drawn, one clip each.

  Attributes:
    scenes: Number of scenes; one clip each.
    frames: Frames a clip, at least 2.
    size: Height and width in pixels, at least 8.
    seed: Scene i depends only on this and i.
    quality: Of the JPEGs, 1 to 100.
    test_fraction: Share of scenes in the split `test`, 0 to 1; a scene keeps
      its split when scenes are added.
    with_depth: Whether clips carry depth.
  """

  limits: ClassVar[dict[str, tuple[float, float]]] = {
    'scenes': (1, 10**6),
    'frames': (2, 10**5),
    'size': (8, 4096),
    'seed': (0, 2**63),
    'quality': (1, 100),
    'test_fraction': (0, 1),
  }

  scenes: int = 256
  frames: int = 24
  size: int = 64
  seed: int = 0
  quality: int = 95
  test_fraction: float = 0.1
  with_depth: bool = True

  def __post_init__(self):
    for option, (low, high) in self.limits.items():
      value = getattr(self, option)
      if not low <= value <= high:
        raise UserError(
          f'the {self.name} source needs {option} between {low} and {high}, '
          f'not {value}'
        )

  def items(self) -> list[sources.Item]:
    return [
      sources.Item(
        id=f'{index:06d}',
        payload=index,
        split=self._split(index),
        size=self.frames * self.size**2,
      )
      for index in range(self.scenes)
    ]

  def _split(self, index: int) -> str:
    chosen = _fraction(index) < self.test_fraction
    forced = index == _ALWAYS_TEST and self.test_fraction > 0
    return 'test' if chosen or forced else 'train'

  def render(
    self,
    clip_id: str,
    baked: raycaster.Baked,
    intrinsics: np.ndarray,
    poses: np.ndarray,
    timestamps: np.ndarray | None = None,
  ) -> sources.Clip:
    """Returns the clip of a scene as cameras see it; arrays as a `Clip`'s."""
    images, depths = [], []
    for image, depth in raycaster.render(baked, intrinsics, poses, self.size):
      images.append(
        simplejpeg.encode_jpeg(
          image, quality=self.quality, colorsubsampling='444'
        )
      )
      if self.with_depth:
        depths.append(encode_depth(depth))
    return sources.Clip(
      id=clip_id,
      frames=images,
      height=self.size,
      width=self.size,
      timestamps=timestamps,
      intrinsics=intrinsics,
      world_to_camera=poses,
      depth=depths if self.with_depth else None,
    )


@dataclasses.dataclass(frozen=True)
class Source(Drawn):
  """Procedural rooms; see the module.

  Attributes:
    paths: Kinds of camera paths with commas between them, of which each clip
      gets one at random: keys of `trajectories.KINDS`, or degrees of freedom of
      `wander.FREEDOMS` joined by `+`, as in 'pan+tilt'. All the former if
      empty.
    walks: Clips a room, each with a path of its own.
    field_of_view: Degrees across a picture; 0 draws 50 to 75 for each room.
    turn: Speed of wandering pan and tilt, degrees a frame (root mean square).
    move: Speed of wandering slide and push, metres a frame.
  """

  limits: ClassVar[dict[str, tuple[float, float]]] = Drawn.limits | {
    'walks': (1, 1000),
    'field_of_view': (0, 120),
    'turn': (0, 30),
    'move': (0, 1),
  }

  name: ClassVar[str] = 'synthetic'
  version: ClassVar[str] = '1.0.0'
  description: ClassVar[str] = (
    'Procedural furnished rooms with exact cameras and depth.'
  )

  paths: str = ''
  walks: int = 1
  field_of_view: float = 0.0
  turn: float = 2.0
  move: float = 0.05

  def __post_init__(self):
    super().__post_init__()
    for kind in self._kinds():
      if kind not in trajectories.KINDS and wander.parse(kind) is None:
        raise UserError(
          f'the {self.name} source has no paths of kind {kind!r}; choose from '
          f'{", ".join(trajectories.KINDS)}, or join some of '
          f'{", ".join(wander.FREEDOMS)} by +'
        )

  def _kinds(self) -> list[str]:
    return self.paths.split(',') if self.paths else list(trajectories.KINDS)

  def items(self) -> list[sources.Item]:
    items = super().items()
    return [
      dataclasses.replace(item, size=item.size * self.walks) for item in items
    ]

  def scene(self, index: int) -> tuple[raycaster.Scene, list[np.ndarray]]:
    """Returns scene `index`, see `build_scene`, as detailed as frames show."""
    # A texel is about a pixel at arm's length.
    resolution = np.clip(2 ** np.ceil(np.log2(self.size * 2)), 64, 512)
    return build_scene(self.seed, index, int(resolution))

  def clips(self, item: sources.Item) -> Iterator[sources.Clip]:
    index = item.payload
    scene, focuses = self.scene(index)
    baked = raycaster.bake(scene)
    for walk in range(self.walks):
      # Its own stream: the path does not change with the number of draws above.
      rng = np.random.default_rng([self.seed, index, 1] + [walk] * (walk > 0))
      angle = rng.uniform(50, 75)
      half_view = np.tan(np.radians(self.field_of_view or angle) / 2)
      poses = self._path(scene, focuses, rng, half_view).astype(np.float32)
      focal = 0.5 / half_view
      intrinsics = np.tile(
        np.array([focal, focal, 0.5, 0.5], np.float32), (self.frames, 1)
      )
      timestamps = np.arange(self.frames) / 10
      clip_id = f'{item.id}-{walk}' if walk else item.id
      yield self.render(clip_id, baked, intrinsics, poses, timestamps)

  def _path(
    self,
    scene: raycaster.Scene,
    focuses: list[np.ndarray],
    rng: Rng,
    half_view: float,
  ) -> np.ndarray:
    """World-to-camera poses [frames, 3, 4] of a kind drawn at random."""
    wandering = [kind for kind in self._kinds() if wander.parse(kind)]
    others = [kind for kind in self._kinds() if kind not in wandering]
    # A path of `trajectories` chooses among its kinds by what fits the room.
    if wandering and rng.uniform() * len(self._kinds()) < len(wandering):
      return wander_in_room(
        scene,
        rng,
        self.frames,
        wander.parse(str(rng.choice(wandering))),
        turn=np.radians(self.turn),
        move=self.move,
      ).world_to_camera()
    path = choose_path(scene, focuses, rng, half_view, others)
    roll = np.array([rng.normal() * 0.02, rng.normal() * 0.02, 1.0])
    eyes, targets = path(np.linspace(0, 1, self.frames))
    return cameras.look_at(eyes, targets, roll)
