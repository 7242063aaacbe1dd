"""Furniture built of primitives."""

import dataclasses

import numpy as np

from xfactor.data.worlds.rooms import looks as looks_lib
from xfactor.data.worlds.rooms import ornaments, textures

Object = tuple[list[looks_lib.Primitive], float, float]


def _legs(w, d, h, r, look, round_=True) -> list[looks_lib.Primitive]:
  places = [
    (sx * (w / 2 - r), sy * (d / 2 - r)) for sx in (-1, 1) for sy in (-1, 1)
  ]
  if round_:
    return [looks_lib.tube(x, y, 0, r, h, look) for x, y in places]
  return [looks_lib.box(x, y, 0, 2 * r, 2 * r, h, look) for x, y in places]


def _chair(rng: textures.Rng, looks: looks_lib.Looks, look=None) -> Object:
  look = look or looks.solid()
  seat = looks.fabric() if rng.uniform() < 0.5 else look
  w, d, h = 0.44, 0.44, 0.44
  parts = _legs(w, d, h, 0.022, look)
  parts.append(looks_lib.box(0, 0, h, w, d, 0.05, seat))
  top = rng.uniform(0.38, 0.55)
  if rng.uniform() < 0.5:
    parts.append(
      looks_lib.box(0, d / 2 - 0.02, h + 0.12, w, 0.035, top - 0.1, seat)
    )
    parts += [
      looks_lib.box(s * (w / 2 - 0.03), d / 2 - 0.02, h, 0.04, 0.04, 0.2, look)
      for s in (-1, 1)
    ]
  else:
    parts += [
      looks_lib.box(x, d / 2 - 0.02, h, 0.035, 0.035, top, look)
      for x in (-0.19, 0, 0.19)
    ]
    parts.append(
      looks_lib.box(0, d / 2 - 0.02, h + top - 0.08, w, 0.045, 0.1, look)
    )
  return parts, w, d


def _table(rng: textures.Rng, looks: looks_lib.Looks) -> Object:
  look, height = looks.solid(), rng.uniform(0.68, 0.78)
  if rng.uniform() < 0.35:
    r = rng.uniform(0.45, 0.75)
    w = d = 2 * r
    parts = [
      looks_lib.tube(0, 0, height - 0.04, r, 0.04, look),
      looks_lib.tube(0, 0, 0, 0.06, height, look),
      looks_lib.tube(0, 0, 0, r * 0.5, 0.03, look),
    ]
  else:
    w, d = rng.uniform(1.0, 1.9), rng.uniform(0.7, 0.95)
    leg = looks.metal if rng.uniform() < 0.3 else look
    parts = _legs(w, d, height - 0.04, 0.035, leg, rng.uniform() < 0.5)
    parts.append(looks_lib.box(0, 0, height - 0.04, w, d, 0.04, look))
    parts.append(
      looks_lib.box(0, 0, height - 0.12, w - 0.1, d - 0.1, 0.08, look)
    )
  parts += ornaments.litter(rng, looks, w * 0.7, d * 0.7, height, 4)
  seat = looks.solid()
  for side in rng.permutation(4)[: rng.integers(0, 4)]:
    chair = _chair(rng, looks, seat)[0]
    away = (d if side % 2 == 0 else w) / 2 + rng.uniform(0.0, 0.25)
    yaw = side * np.pi / 2
    x, y = -np.sin(yaw) * away, np.cos(yaw) * away
    parts += looks_lib.move(chair, x, y, 0, yaw + rng.normal() * 0.1)
  return parts, w + 1.1, d + 1.1


def _coffee_table(rng, looks) -> Object:
  w, d = rng.uniform(0.7, 1.2), rng.uniform(0.5, 0.7)
  h, look = rng.uniform(0.35, 0.45), looks.solid()
  parts = _legs(w, d, h, 0.03, look)
  parts += [
    looks_lib.box(0, 0, h, w, d, 0.04, look),
    looks_lib.box(0, 0, 0.12, w - 0.1, d - 0.1, 0.02, look),
  ]
  return parts + ornaments.litter(rng, looks, w * 0.8, d, h + 0.04, 3), w, d


def _bookcase(rng, looks) -> Object:
  w, d = rng.uniform(0.8, 1.6), 0.32
  rows = int(rng.integers(2, 6))
  h = rows * 0.38 + 0.06
  look = looks.solid()
  parts = [
    looks_lib.box(s * (w / 2 - 0.015), 0, 0, 0.03, d, h, look) for s in (-1, 1)
  ]
  parts.append(looks_lib.box(0, d / 2 - 0.01, 0, w, 0.02, h, look))
  for row in range(rows + 1):
    parts.append(
      looks_lib.box(0, 0, row * 0.38 + 0.03, w - 0.05, d, 0.025, look)
    )
  for row in range(rows):
    z, x = row * 0.38 + 0.055, -w / 2 + 0.05
    while x < w / 2 - 0.2:
      run = min(rng.uniform(0.15, 0.5), w / 2 - 0.05 - x)
      middle, draw = x + run / 2, rng.uniform()
      if draw < 0.7:
        tone = rng.uniform(0.75, 1, 3)
        parts.append(
          looks_lib.box(
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
        parts += looks_lib.move(ornaments.trinket(rng, looks)[:2], middle, 0, z)
      x += run + rng.uniform(0, 0.05)
  return parts + ornaments.litter(rng, looks, w, d, h + 0.0, 2), w, d


def _sofa(rng, looks) -> Object:
  seats = int(rng.integers(1, 4))
  w, d, fabric = 0.5 + 0.6 * seats, 0.9, looks.fabric()
  parts = [
    looks_lib.box(0, 0, 0.12, w, d, 0.2, fabric),
    looks_lib.box(0, d / 2 - 0.1, 0.12, w, 0.2, rng.uniform(0.6, 0.75), fabric),
  ]
  parts += [
    looks_lib.box(s * (w / 2 - 0.1), 0, 0.12, 0.2, d, 0.45, fabric)
    for s in (-1, 1)
  ]
  parts += _legs(w, d, 0.12, 0.03, looks.wood)
  for i in range(seats):
    x = (i - (seats - 1) / 2) * 0.6 * (w - 0.4) / (0.6 * seats + 0.1)
    parts.append(looks_lib.box(x, -0.08, 0.32, 0.56, d - 0.2, 0.14, fabric))
    if rng.uniform() < 0.7:
      cushion = looks_lib.box(0, 0, -0.2, 0.4, 0.13, 0.4, looks.painted())
      tilted = dataclasses.replace(cushion, axes=looks_lib.tip(-0.25))
      parts += looks_lib.move([tilted], x, 0.16, 0.65, rng.normal() * 0.2)
  return parts, w, d


def _bed(rng, looks) -> Object:
  w, d = rng.uniform(1.0, 1.8), 2.05
  frame, cover = looks.solid(), looks.fabric()
  parts = [
    looks_lib.box(0, 0, 0.12, w, d, 0.2, frame),
    looks_lib.box(0, 0, 0.32, w - 0.06, d - 0.06, 0.18, looks.white),
    looks_lib.box(0, -0.25, 0.34, w + 0.02, d - 0.5, 0.2, cover),
    looks_lib.box(0, d / 2 - 0.03, 0, w, 0.06, rng.uniform(0.8, 1.2), frame),
  ]
  parts += _legs(w, d, 0.12, 0.04, frame, False)
  pillows = 1 if w < 1.3 else 2
  for i in range(pillows):
    x = (i - (pillows - 1) / 2) * w / 2
    parts.append(
      looks_lib.blob(x, d / 2 - 0.32, 0.46, 0.33, 0.22, 0.1, looks.white)
    )
  return parts, w, d


def _cabinet(rng, looks) -> Object:
  w, d, h = rng.uniform(0.6, 1.7), 0.45, rng.uniform(0.5, 1.0)
  body, front = looks.solid(), looks.solid()
  parts = [
    looks_lib.box(0, 0, 0.06, w, d, h - 0.06, body),
    looks_lib.box(0, 0, h, w + 0.04, d + 0.03, 0.03, body),
  ]
  parts += _legs(w, d, 0.06, 0.025, looks.dark)
  columns = max(1, round(w / 0.5))
  rows = int(rng.integers(1, 4))
  cw, ch = w / columns, (h - 0.08) / rows
  for c in range(columns):
    for r in range(rows):
      x, z = (c + 0.5) * cw - w / 2, 0.07 + r * ch
      parts.append(
        looks_lib.box(x, -d / 2, z + 0.01, cw - 0.03, 0.03, ch - 0.02, front)
      )
      parts.append(
        looks_lib.blob(
          x, -d / 2 - 0.03, z + ch / 2, 0.02, 0.02, 0.02, looks.metal
        )
      )
  return parts + ornaments.litter(rng, looks, w, d, h + 0.03, 3), w, d


def _wardrobe(rng, looks) -> Object:
  w, d, h = rng.uniform(0.9, 1.7), 0.58, rng.uniform(1.8, 2.1)
  body = looks.solid()
  front = looks.texture(textures.door, looks.accent(), looks.accent())
  parts = [looks_lib.box(0, 0, 0, w, d, h, body)]
  for s in (-1, 1):
    parts.append(
      looks_lib.box(
        s * w / 4, -d / 2, 0.08, w / 2 - 0.03, 0.03, h - 0.12, body, front=front
      )
    )
  return parts, w, d


def _desk(rng, looks) -> Object:
  w, d, h = rng.uniform(1.1, 1.6), 0.65, 0.73
  look = looks.solid()
  parts = [
    looks_lib.box(0, 0, h, w, d, 0.035, look),
    looks_lib.box(w / 2 - 0.22, 0, 0.05, 0.4, d - 0.1, h - 0.05, looks.solid()),
  ]
  parts += _legs(w, d, h, 0.025, looks.metal)
  picture = looks.texture(textures.screen, looks.accent(), looks.accent())
  screen = dataclasses.replace(picture, glow=0.8)
  parts += [
    looks_lib.box(-0.1, 0.15, h + 0.035, 0.2, 0.16, 0.02, looks.dark),
    looks_lib.box(-0.1, 0.17, h + 0.05, 0.04, 0.04, 0.2, looks.dark),
    looks_lib.box(-0.1, 0.15, h + 0.16, 0.6, 0.035, 0.36, looks.dark),
    looks_lib.box(-0.1, 0.13, h + 0.18, 0.56, 0.005, 0.32, screen),
    looks_lib.box(-0.1, -0.15, h + 0.035, 0.42, 0.14, 0.02, looks.dark),
  ]
  parts += looks_lib.move(
    ornaments.trinket(rng, looks), w / 2 - 0.2, 0.1, h + 0.035
  )
  turned = np.pi + rng.normal() * 0.3
  parts += looks_lib.move(_chair(rng, looks)[0], -0.1, -0.5, 0, turned)
  return parts, w, d + 0.8


def _plant(rng, looks) -> Object:
  r, h = rng.uniform(0.14, 0.22), rng.uniform(0.25, 0.45)
  parts = [
    looks_lib.tube(0, 0, 0, r, h, looks.painted()),
    looks_lib.tube(0, 0, h - 0.02, r * 0.9, 0.03, looks.dark),
  ]
  tall = rng.uniform(0.3, 0.9)
  parts.append(looks_lib.tube(0, 0, h, 0.025, tall, looks.wood))
  for _ in range(rng.integers(3, 6)):
    x, y = rng.normal(size=2) * 0.13
    size = rng.uniform(0.12, 0.28, 3)
    parts.append(
      looks_lib.blob(
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
      looks_lib.tube(0, 0, 0, 0.16, 0.03, looks.metal),
      looks_lib.tube(0, 0, 0, 0.018, h, looks.metal),
      looks_lib.tube(0, 0, h, 0.2, 0.28, looks.lamp(0.8)),
    ],
    0.45,
    0.45,
  )


def _boxes(rng, looks) -> Object:
  parts, z, size = [], 0.0, rng.uniform(0.45, 0.65)
  card = looks.texture(
    textures.poster, looks.accent(), textures.hsv(0.09, 0.45, 0.75)
  )
  for _ in range(rng.integers(1, 4)):
    w, d, h = size * rng.uniform(0.7, 1, 3)
    parts += looks_lib.move(
      [looks_lib.box(0, 0, 0, w, d, h, card)], 0, 0, z, rng.normal() * 0.3
    )
    z, size = z + h, size * 0.8
  return parts, 0.75, 0.75


def _balls(rng, looks) -> Object:
  parts = []
  for i in range(rng.integers(1, 4)):
    r, angle = rng.uniform(0.12, 0.26), 2.1 * i + rng.uniform(0, 0.5)
    look = looks.texture(
      rng.choice(
        [textures.ball, textures.checks, textures.dots, textures.stripes]
      ),
      looks.accent(),
      looks.accent(),
    )
    ball = looks_lib.blob(0, 0, -r, r, r, r, look)
    ball = dataclasses.replace(ball, axes=looks_lib.tip(rng.uniform(0, 3)))
    parts += looks_lib.move(
      [ball], 0.3 * np.cos(angle), 0.3 * np.sin(angle), r, rng.uniform(0, 6)
    )
  return parts, 1.0, 1.0


def _pedestal(rng, looks) -> Object:
  h, w = rng.uniform(0.6, 1.1), rng.uniform(0.3, 0.45)
  stone = looks.texture(
    textures.marble, [0.93] * 3, textures.hsv(looks.hue, 0.2, 0.5), 0.8
  )
  parts = [
    looks_lib.box(0, 0, 0, w + 0.1, w + 0.1, 0.08, stone),
    looks_lib.box(0, 0, 0.08, w, w, h - 0.08, stone),
  ]
  look, s = looks.painted(), rng.uniform(0.7, 1.1)
  kind = rng.integers(4)
  if kind == 0:  # A figure of balls.
    parts += [
      looks_lib.blob(0, 0, h + z * s, r * s, r * s, r * s, look)
      for z, r in ((0, 0.16), (0.26, 0.12), (0.46, 0.08))
    ]
  elif kind == 1:  # An urn.
    parts += [
      looks_lib.tube(0, 0, h, 0.08 * s, 0.1, look),
      looks_lib.blob(0, 0, h + 0.06, 0.17 * s, 0.17 * s, 0.22 * s, look),
      looks_lib.tube(0, 0, h + 0.3 * s, 0.07 * s, 0.22 * s, look),
    ]
  elif kind == 2:  # Crossed slabs.
    slab = looks_lib.box(0, 0, 0, 0.1, 0.12, 0.55 * s, look)
    parts += looks_lib.move([slab], 0, 0, h)
    tilted = dataclasses.replace(
      looks_lib.box(0, 0, h + 0.25 * s, 0.09, 0.1, 0.4 * s, looks.painted()),
      axes=looks_lib.turned(0.8) @ looks_lib.tip(1.0),
    )
    parts.append(tilted)
  else:
    parts.append(
      looks_lib.blob(
        0,
        0,
        h,
        0.2 * s,
        0.2 * s,
        0.2 * s,
        looks.texture(textures.marble, looks.accent(), [0.95] * 3),
      )
    )
  return parts, w + 0.2, w + 0.2


def _column(rng, looks) -> Object:
  r = rng.uniform(0.15, 0.26)
  look = looks.walls[1] if rng.uniform() < 0.5 else looks.white
  return (
    [
      looks_lib.tube(0, 0, 0, r, 5.0, look),
      looks_lib.box(0, 0, 0, 2.6 * r, 2.6 * r, 0.14, look),
    ],
    2.6 * r,
    2.6 * r,
  )


def _stool(rng, looks) -> Object:
  h, look = rng.uniform(0.42, 0.7), looks.solid()
  parts = _legs(0.3, 0.3, h, 0.02, look)
  parts += [
    looks_lib.tube(0, 0, h, 0.19, 0.06, looks.fabric()),
    looks_lib.tube(0, 0, h * 0.35, 0.15, 0.02, look),
  ]
  return parts, 0.4, 0.4


def _television(rng, looks) -> Object:
  parts, w, d = _cabinet(rng, looks)
  h = max(p.centre[2] + p.half[2] for p in parts[:2])
  parts = [p for p in parts if p.centre[2] - p.half[2] < h - 0.01]
  picture = looks.texture(
    rng.choice([textures.landscape, textures.screen, textures.blobs]),
    looks.accent(),
    looks.accent(),
  )
  screen = dataclasses.replace(picture, glow=0.9)
  s = min(1.2, w * 0.9)
  return (
    parts
    + [
      looks_lib.box(0, 0.05, h, s * 0.4, 0.2, 0.03, looks.dark),
      looks_lib.box(0, 0.05, h + 0.03, s, 0.05, s * 0.58, looks.dark),
      looks_lib.box(0, 0.02, h + 0.05, s - 0.05, 0.01, s * 0.58 - 0.05, screen),
    ],
    w,
    d,
  )


def _counter(rng, looks) -> Object:
  w, d, h = rng.uniform(1.4, 2.4), 0.6, 0.9
  body, top = (
    looks.solid(),
    looks.texture(
      rng.choice([textures.marble, textures.concrete]),
      looks.accent(),
      [0.9] * 3,
      1.0,
    ),
  )
  parts = [
    looks_lib.box(0, 0.03, 0, w, d - 0.06, 0.1, looks.dark),
    looks_lib.box(0, 0, 0.1, w, d, h - 0.14, body),
    looks_lib.box(0, -0.01, h - 0.04, w + 0.02, d + 0.02, 0.04, top),
  ]
  doors = round(w / 0.55)
  for i in range(doors):
    x = (i + 0.5) * w / doors - w / 2
    parts.append(
      looks_lib.box(x, -d / 2, 0.13, w / doors - 0.03, 0.03, h - 0.2, body)
    )
    handle = looks_lib.box(
      x, -d / 2 - 0.02, h - 0.14, 0.14, 0.02, 0.02, looks.metal
    )
    parts.append(handle)
  parts.append(
    looks_lib.box(0, d / 2 - 0.18, h + 0.6, w, 0.34, 0.6, looks.solid())
  )
  return parts + ornaments.litter(rng, looks, w, d, h, 4), w, d


AT_WALLS = (
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
ANYWHERE = (
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
# Furniture at walls and furniture anywhere, by room type. None: any furniture.
THEMES = (
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
