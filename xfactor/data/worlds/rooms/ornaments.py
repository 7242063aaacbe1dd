"""Small objects that stand on furniture."""

import numpy as np

from xfactor.data.worlds.rooms import looks as looks_lib
from xfactor.data.worlds.rooms import textures


def trinket(
  rng: textures.Rng, looks: looks_lib.Looks
) -> list[looks_lib.Primitive]:
  """Samples a small object that stands on a surface."""
  kind = rng.integers(7)
  look = looks.painted()
  s = rng.uniform(0.8, 1.3)
  if kind == 0:  # Vase with a plant.
    return [
      looks_lib.tube(0, 0, 0, 0.05 * s, 0.16 * s, look),
      looks_lib.blob(0, 0, 0.15 * s, 0.11 * s, 0.11 * s, 0.1 * s, looks.leaf),
    ]
  if kind == 1:  # Pile of books.
    parts, z = [], 0.0
    for _ in range(rng.integers(2, 5)):
      h = rng.uniform(0.025, 0.05)
      book = looks_lib.box(
        0,
        0,
        0,
        rng.uniform(0.15, 0.2),
        rng.uniform(0.2, 0.26),
        h,
        looks.painted(),
      )
      parts += looks_lib.move([book], 0, 0, z, rng.normal() * 0.25)
      z += h
    return parts
  if kind == 2:  # Ball.
    r = rng.uniform(0.06, 0.11)
    ball = looks.texture(textures.ball, looks.accent(), looks.accent())
    return [looks_lib.blob(0, 0, 0, r, r, r, ball)]
  if kind == 3:  # Bowl of fruit.
    fruit = looks.paint.tinted(textures.hsv(rng.uniform(0, 0.3), 0.85, 0.85))
    return [looks_lib.tube(0, 0, 0, 0.13 * s, 0.05, look)] + [
      looks_lib.blob(
        0.06 * np.cos(a), 0.06 * np.sin(a), 0.03, 0.04, 0.04, 0.04, fruit
      )
      for a in (0.3, 2.4, 4.5)
    ]
  if kind == 4:  # Lamp.
    return [
      looks_lib.tube(0, 0, 0, 0.07 * s, 0.03, looks.metal),
      looks_lib.tube(0, 0, 0, 0.015, 0.3 * s, looks.metal),
      looks_lib.tube(0, 0, 0.24 * s, 0.1 * s, 0.16 * s, looks.lamp(1.0)),
    ]
  if kind == 5:  # Box.
    w, d, h = rng.uniform(0.1, 0.26, 3)
    return looks_lib.move(
      [
        looks_lib.box(
          0,
          0,
          0,
          w,
          d,
          h,
          looks.texture(textures.checks, looks.accent(), looks.accent(), 0.3),
        )
      ],
      0,
      0,
      0,
      rng.uniform(0, 3),
    )
  return [
    looks_lib.tube(0, 0, 0, 0.06 * s, 0.03, look),
    looks_lib.blob(0, 0, 0.03, 0.08 * s, 0.08 * s, 0.13 * s, look),
  ]


def litter(rng, looks, w, d, z, most) -> list[looks_lib.Primitive]:
  """Samples trinkets on a surface, in slots so that they do not overlap."""
  slots = max(1, int(w / 0.32))
  count = min(slots, int(rng.integers(0, most + 1)))
  parts = []
  for slot in rng.permutation(slots)[:count]:
    x = (slot + 0.5) / slots * w - w / 2
    y = rng.uniform(-0.5, 0.5) * max(0, d - 0.36)
    parts += looks_lib.move(trinket(rng, looks), x, y, z, rng.uniform(0, 6))
  return parts
