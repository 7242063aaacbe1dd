"""Procedural textures."""

import colorsys
import functools

import numpy as np

Rng = np.random.Generator


@functools.lru_cache(maxsize=64)
def _weights(n: int, cells: int) -> np.ndarray:
  """Returns smooth periodic interpolation weights [n, cells] of a lattice."""
  x = (np.arange(n) + 0.5) / n * cells
  i = np.floor(x).astype(int)
  t = x - i
  t = t * t * (3 - 2 * t)
  weights = np.zeros((n, cells), np.float32)
  weights[np.arange(n), i % cells] += 1 - t
  weights[np.arange(n), (i + 1) % cells] += t
  return weights


def _noise(rng: Rng, n: int, columns: int, rows: int, octaves: int = 3):
  """Samples fractal noise [n, n] of about unit range around 0."""
  total = np.zeros((n, n), np.float32)
  for octave in range(octaves):
    c, r = columns << octave, rows << octave
    lattice = rng.uniform(-1, 1, (r, c)).astype(np.float32)
    # Cells smaller than texels would alias; sample them without using them, so
    # that later random numbers do not depend on the resolution.
    if max(c, r) <= n:
      total += _weights(n, r) @ lattice @ _weights(n, c).T * 0.6**octave
  return total


def _grid(n: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns coordinates u [1, n] and v [n, 1] in 0..1."""
  x = ((np.arange(n) + 0.5) / n).astype(np.float32)
  return x[None, :], x[:, None]


def _mix(a, b, t: np.ndarray) -> np.ndarray:
  """Interpolates colours [n, n, 3] from `a` (t = 0) to `b` (t = 1)."""
  t = np.clip(t, 0, 1)[..., None]
  return np.asarray(a, np.float32) * (1 - t) + np.asarray(b, np.float32) * t


def plain(rng, n, a, b):
  """Renders paint or plaster with faint blotches."""
  return _mix(a, b, 0.5 + 0.35 * _noise(rng, n, 5, 5, 5))


def _cells(rng, n, columns, rows, shift, gap):
  """Returns a running bond: joint mask and random number per cell, [n, n]."""
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


def bricks(rng, n, a, b):
  joint, value = _cells(rng, n, 4, 12, 0.5, 0.005)
  face = _mix(a, b, value) * (1 + 0.15 * _noise(rng, n, 16, 16, 3))[..., None]
  mortar = np.float32(0.72) + 0.1 * _noise(rng, n, 16, 16, 2)[..., None]
  return np.where(joint[..., None], mortar, face)


def tiles(rng, n, a, b):
  count = int(rng.integers(3, 7))
  joint, value = _cells(rng, n, count, count, 0.0, 0.004)
  u, v = _grid(n)
  parity = (np.floor(u * count) + np.floor(v * count)) % 2
  if rng.uniform() < 0.5 or count % 2:
    parity = value * 0.35
  face = _mix(a, b, parity) * (0.94 + 0.12 * value)[..., None]
  face = face * (1 + 0.06 * _noise(rng, n, 8, 8, 3))[..., None]
  return np.where(joint[..., None], np.float32(0.45), face)


def planks(rng, n, a, b):
  rows = int(rng.integers(6, 13))
  joint, value = _cells(rng, n, 1, rows, 0.37, 0.002)
  grain = _noise(rng, n, 2, 48, 3)
  face = _mix(a, b, value * 0.8 + 0.25 * grain)
  return np.where(joint[..., None], face * 0.45, face)


def wood(rng, n, a, b):
  _, v = _grid(n)
  rings = v * 7 + 0.9 * _noise(rng, n, 1, 4, 2)
  grain = 0.5 + 0.5 * np.sin(2 * np.pi * rings)
  fibre = 0.3 + 0.35 * _noise(rng, n, 3, 48, 2)
  return _mix(a, b, 0.55 * grain + fibre)


def stripes(rng, n, a, b):
  u, v = _grid(n)
  count = int(rng.integers(3, 9))
  phase = (u * count) % 1 + 0 * v
  wide = phase < rng.uniform(0.3, 0.6)
  thin = np.abs(phase - 0.8) < 0.03
  t = np.where(wide | thin, 1.0, 0.0) + 0.08 * _noise(rng, n, 8, 8)
  return _mix(a, b, t)


def dots(rng, n, a, b):
  u, v = _grid(n)
  count = int(rng.integers(3, 8))
  y = v * count * 2
  x = u * count + 0.5 * np.floor(y)
  far = np.hypot(x % 1 - 0.5, (y % 1 - 0.5) / 2)
  return _mix(a, b, (far < rng.uniform(0.12, 0.24)).astype(np.float32))


def damask(rng, n, a, b):
  u, v = _grid(n)
  count = int(rng.integers(2, 5))
  x, y = 2 * np.pi * count * u, 2 * np.pi * count * v
  k, m = rng.integers(1, 4, 2)
  wave = np.cos(x) * np.cos(y) + 0.6 * np.cos(k * x + np.sin(m * y))
  wave = wave + 0.4 * np.cos(2 * y - np.sin(x))
  return _mix(a, b, np.clip(wave * 4 + 0.5, 0, 1) * 0.8)


def checks(rng, n, a, b):
  u, v = _grid(n)
  count = 2 * int(rng.integers(1, 5))
  parity = (np.floor(u * count) + np.floor(v * count)) % 2
  return _mix(a, b, parity + 0.1 * _noise(rng, n, 8, 8))


def plaid(rng, n, a, b):
  u, v = _grid(n)
  count = int(rng.integers(2, 5))
  t = 0.5 * ((u * count) % 1 < 0.45) + 0.5 * ((v * count) % 1 < 0.45)
  line = (np.abs((u * count) % 1 - 0.72) < 0.04) | (
    np.abs((v * count) % 1 - 0.72) < 0.04
  )
  return np.where(line[..., None], np.float32(0.9), _mix(a, b, t))


def marble(rng, n, a, b):
  u, v = _grid(n)
  warp = _noise(rng, n, 3, 3, 4)
  vein = np.abs(np.sin(2 * np.pi * (u + v) + 4 * warp))
  return _mix(b, a, vein**0.4)


def fabric(rng, n, a, b):
  u, v = _grid(n)
  weave = np.sin(64 * np.pi * u) * np.sin(64 * np.pi * v)
  return _mix(a, b, 0.4 + 0.25 * weave + 0.4 * _noise(rng, n, 6, 6, 3))


def concrete(rng, n, a, b):
  blotch = _noise(rng, n, 2, 2, 6)
  speck = _noise(rng, n, 32, 32, 2) > 1.1
  return _mix(a, b, 0.5 + 0.5 * blotch) * np.where(speck, 0.75, 1.0)[..., None]


def leaves(rng, n, a, b):
  t = _noise(rng, n, 8, 8, 3)
  return _mix(a, b, 0.5 + 1.2 * t) * np.where(t < -0.45, 0.4, 1.0)[..., None]


def rug(rng, n, a, b):
  u, v = _grid(n)
  ring = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v))
  diamonds = (np.abs((u * 6) % 1 - 0.5) + np.abs((v * 6) % 1 - 0.5)) < 0.28
  middle = np.abs(u - 0.5) + np.abs(v - 0.5)
  bands = np.floor(ring * 28).astype(int)
  t = np.where(bands < 6, np.isin(bands, [1, 3, 4]), diamonds)
  t = np.where((middle < 0.3) & (bands >= 6), np.floor(middle * 20) % 2, t)
  return _mix(a, b, t) * (1 + 0.15 * _noise(rng, n, 32, 32, 2))[..., None]


def books(rng, n, a, b):
  """Renders the spines of 24 books side by side."""
  edges = np.cumsum(rng.uniform(0.5, 1.5, 24))
  edges = edges / edges[-1]
  u, v = _grid(n)
  book = np.minimum(np.searchsorted(edges, u[0]), 23)
  colours = hsv(
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


def landscape(rng, n, a, b):
  u, v = _grid(n)
  sky = hsv(rng.uniform(0.5, 0.65), 0.5, 0.95)
  dusk = hsv(rng.uniform(0.0, 0.15), 0.45, 0.98)
  image = _mix(dusk, sky, v * 1.4 - 0.3 + 0.15 * _noise(rng, n, 3, 5, 3))
  sun = np.hypot(u - rng.uniform(0.2, 0.8), v - rng.uniform(0.6, 0.8))
  image = np.where((sun < 0.07)[..., None], np.float32([1, 0.93, 0.7]), image)
  for layer in range(3):
    crest = 0.55 - 0.14 * layer
    crest = crest + 0.16 * _noise(rng, n, 3, 1, 4).mean(0)[None]
    hill = hsv(rng.uniform(0.2, 0.6), 0.5, 0.75 - 0.2 * layer)
    image = np.where((v < crest)[..., None], hill, image)
  return _frame(image, np.asarray(a) * 0.5)


def _abstract(rng, n, a, b):
  u, v = _grid(n)
  image = np.full((n, n, 3), 0.93, np.float32)
  hue = rng.uniform()
  for _ in range(9):
    x, y = rng.uniform(0, 1, 2)
    w, h = rng.uniform(0.08, 0.4, 2)
    colour = hsv(
      hue + rng.normal() * 0.15, rng.uniform(0.3, 1), rng.uniform(0.2, 1)
    )
    inside = (np.abs(u - x) < w) & (np.abs(v - y) < h)
    if rng.uniform() < 0.5:
      inside = np.hypot(u - x, v - y) < w * 0.7
    image = np.where(inside[..., None], colour, image)
  return _frame(image, np.asarray(b) * 0.35, 0.035)


def blobs(rng, n, a, b):
  t = _noise(rng, n, 3, 3, 2)
  bands = np.floor((t + 1.2) * 3.2).astype(int).clip(0, 6)
  colours = hsv(
    rng.uniform(size=7), rng.uniform(0.3, 0.9, 7), rng.uniform(0.35, 1, 7)
  )
  return _frame(colours[bands], np.asarray(a) * 0.7, 0.04)


def poster(rng, n, a, b):
  """Renders lines of text under a block of colour."""
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
  picture = _mix(a, hsv(rng.uniform(), 0.8, 0.8), wave.astype(np.float32))
  return np.where(head[..., None], picture, image)


def window(rng, n, a, b):
  """Renders sky, hills and clouds behind white bars."""
  u, v = _grid(n)
  clouds = np.clip(_noise(rng, n, 2, 4, 4) * 1.2, 0, 1)
  sky = _mix([0.88, 0.93, 0.98], [0.45, 0.65, 0.95], v + 0 * u)
  image = _mix(sky, [1, 1, 1], clouds)
  for layer in range(2):
    crest = 0.36 - 0.12 * layer + 0.12 * _noise(rng, n, 3, 1, 4).mean(0)[None]
    hill = hsv(rng.uniform(0.2, 0.4), 0.4, 0.6 - 0.18 * layer)
    image = np.where((v < crest)[..., None], hill, image)
  ring = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v))
  bars = (ring < 0.05) | (np.abs(u - 0.5) < 0.025) | (np.abs(v - 0.5) < 0.02)
  return np.where(bars[..., None], np.float32(0.8), image)


def door(rng, n, a, b):
  u, v = _grid(n)
  x, y = (u * 2) % 1, (v * 3) % 1
  ring = np.minimum(np.minimum(x, 1 - x) / 2, np.minimum(y, 1 - y) / 3 * 2)
  groove = np.abs(ring - 0.08) < 0.012
  knob = np.hypot(u - 0.92, (v - 0.47) * 2.2) < 0.035
  wood = _mix(a, b, 0.3 + 0.3 * _noise(rng, n, 32, 2, 2))
  wood = np.where(groove[..., None], wood * 0.5, wood)
  return np.where(knob[..., None], np.float32([0.85, 0.75, 0.45]), wood)


def screen(rng, n, a, b):
  u, v = _grid(n)
  image = _mix(a, b, 0.5 + 0.8 * _noise(rng, n, 2, 2, 2))
  panel = (u > 0.1) & (u < 0.55) & (v > 0.2) & (v < 0.85)
  rows = panel & ((v * 14) % 1 < 0.4)
  image = np.where(panel[..., None], np.float32(0.93), image)
  return np.where(rows[..., None], np.float32(0.3), image)


def ball(rng, n, a, b):
  u, v = _grid(n)
  t = np.floor(u * 6) % 2 + 0 * v
  band = np.abs(v - 0.5) < 0.12
  return np.where(band[..., None], np.float32(0.95), _mix(a, b, t))


PAINTINGS = (landscape, _abstract, blobs, poster)


def hsv(h, s, v) -> np.ndarray:
  """Returns sRGB colours [..., 3] of hue (any real), saturation and value."""
  h, s, v = np.broadcast_arrays(h, s, v)
  rgb = [
    colorsys.hsv_to_rgb(*x)
    for x in zip(h.ravel() % 1, s.ravel(), v.ravel(), strict=True)
  ]
  return np.asarray(rgb, np.float32).reshape(*h.shape, 3)
