"""Builds a furnished, lit room from a seed."""

import dataclasses

import numpy as np

from xfactor.data.worlds.raycaster import scene as scene_lib
from xfactor.data.worlds.raycaster.scene import BOX, ROOM, TUBE
from xfactor.data.worlds.rooms import furniture, textures
from xfactor.data.worlds.rooms import looks as looks_lib


class _Room:
  """A scene under construction: parts, lights and occupied areas."""

  def __init__(self, rng: textures.Rng, looks: looks_lib.Looks):
    self.rng, self.looks = rng, looks
    self.size = np.array(
      [rng.uniform(3.6, 7.5), rng.uniform(3.6, 7.5), rng.uniform(2.4, 3.5)]
    )
    self.groups: list[list[looks_lib.Primitive]] = []
    self.lights: list[scene_lib.Light] = []
    self.focuses: list[np.ndarray] = []
    self._taken: list[tuple[float, float, float, float]] = []
    self._wall_taken: list[tuple[int, float, float, float, float]] = []

  def add(self, parts: list[looks_lib.Primitive]) -> None:
    self.groups.append(parts)

  # Walls 0..3 are +y, -x, -y, +x: wall 0 rotated by quarter turns.

  def wall_length(self, wall: int) -> float:
    return self.size[wall % 2]

  def at_wall(self, wall: int, along: float, off: float) -> tuple[float, ...]:
    """Returns x, y and yaw at `off` from a wall, `along` from its centre."""
    yaw = wall * np.pi / 2
    x, y, _ = looks_lib.turned(yaw) @ [
      along,
      self.size[1 - wall % 2] / 2 - off,
      0,
    ]
    return x, y, yaw

  def claim_floor(self, x, y, w, d, gap=0.08) -> bool:
    """Occupies a rectangle of the floor if all of it is free."""
    box = (x - w / 2 - gap, y - d / 2 - gap, x + w / 2 + gap, y + d / 2 + gap)
    for a in self._taken:
      if box[0] < a[2] and a[0] < box[2] and box[1] < a[3] and a[1] < box[3]:
        return False
    self._taken.append(box)
    return True

  def fits_wall(self, wall, along, w, low, high) -> bool:
    """Returns whether a wall is free from `low` to `high` over width `w`."""
    a, b = along - w / 2, along + w / 2
    if max(-a, b) > self.wall_length(wall) / 2:
      return False
    return not any(
      other == wall and a < d and c < b and low < top and bottom < high
      for other, c, d, bottom, top in self._wall_taken
    )

  def claim_wall(self, wall, along, w, low, high) -> bool:
    """Occupies a rectangle of a wall if all of it is free."""
    fits = self.fits_wall(wall, along, w, low, high)
    if fits:
      self._wall_taken.append((wall, along - w / 2, along + w / 2, low, high))
    return fits


def _shape(room: _Room) -> None:
  """Adds corner blocks, beams, sloping ceilings and skirting boards."""
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
        room.add([looks_lib.box(x, y, 0, w, d, height, look)])
        for wall in range(4):
          # Position of the block in the frame where this wall is at +y.
          along, off, _ = looks_lib.turned(-wall * np.pi / 2) @ [x, y, 0]
          if off > 0:
            extent = w if wall % 2 == 0 else d
            room.claim_wall(wall, along, extent - 0.1, 0.0, height)
  elif kind == 2:  # Beams under the ceiling.
    count = int(rng.integers(2, 6))
    beam = looks.wood if rng.uniform() < 0.7 else looks.white
    room.add(
      [
        looks_lib.box(
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
  elif kind == 3:  # Attic: the ceiling slopes on one or both sides.
    slope = rng.uniform(0.5, 0.9)
    for side in (1, -1)[: 1 + (rng.uniform() < 0.5)]:
      plank = looks_lib.Primitive(
        BOX,
        np.array([0, side * depth / 2, height]),
        np.array([width / 2, 1.0, 0.55]),
        looks.ceiling,
        axes=looks_lib.tip(-side * slope),
      )
      room.add([plank])
  elif kind == 4:  # A half-height or full wall that projects into the room.
    w, x = rng.uniform(0.8, 1.6), rng.uniform(-0.25, 0.25) * width
    y = depth / 2 - w / 2
    room.claim_floor(x, y, 0.16, w)
    room.claim_wall(0, x, 0.16, 0.0, height)
    h = rng.choice([1.1, height])
    room.add(
      [
        looks_lib.box(x, y, 0, 0.14, w, h, look),
        looks_lib.box(x, y, h - 0.01, 0.2, w + 0.03, 0.05, looks.wood),
      ]
    )
  if rng.uniform() < 0.7:
    board = looks.wood if rng.uniform() < 0.4 else looks.white
    h = rng.uniform(0.07, 0.16)
    room.add(
      [
        looks_lib.box(0, s * depth / 2, 0, width, 0.04, h, board)
        for s in (-1, 1)
      ]
      + [
        looks_lib.box(s * width / 2, 0, 0, 0.04, depth, h, board)
        for s in (-1, 1)
      ]
    )


def _openings(room: _Room) -> None:
  """Adds windows, which emit light, and doors."""
  rng, looks, height = room.rng, room.looks, room.size[2]
  sky = dataclasses.replace(
    looks.texture(textures.window, looks.accent(), looks.accent()), glow=2.2
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
      looks_lib.box(0, -0.012, low, w, 0.024, h, sky),
      looks_lib.box(0, -0.05, low - 0.06, w + 0.2, 0.16, 0.06, looks.white),
      looks_lib.box(0, -0.02, low + h, w + 0.16, 0.05, 0.08, looks.white),
    ]
    parts += [
      looks_lib.box(s * (w / 2 + 0.04), -0.02, low, 0.08, 0.05, h, looks.white)
      for s in (-1, 1)
    ]
    if rng.uniform() < 0.45:
      curtain, drop = looks.fabric(), low + h + 0.1
      start = 0.05 if rng.uniform() < 0.5 else low - 0.2
      for s in (-1, 1):
        parts += [
          looks_lib.tube(
            s * (w / 2 + 0.05 + 0.075 * i),
            -0.1,
            start,
            0.045,
            drop - start,
            curtain,
          )
          for i in range(3)
        ]
      rod = looks_lib.Primitive(
        TUBE,
        np.array([0, -0.1, drop]),
        np.array([0.015, 0.015, w / 2 + 0.35]),
        looks.metal,
        axes=looks_lib.turned(np.pi / 2) @ looks_lib.tip(np.pi / 2),
      )
      parts.append(rod)
    room.add(looks_lib.move(parts, x, y, 0, yaw))
    turn = looks_lib.turned(yaw)
    inwards = turn @ [0, -1.0, 0]
    centre = np.array([x, y, low + h / 2]) + inwards * 0.16
    u, v = turn @ [w / 2, 0, 0], np.array([0, 0, h / 2])
    cool = np.array([0.85, 0.95, 1.1]) * w * h * rng.uniform(3, 6)
    room.lights.append(scene_lib.Light(centre, u, v, cool, inwards))
    if sunny:
      away = turn @ [rng.uniform(-0.8, 0.8), 1.0, 0]
      away[2] = rng.uniform(0.45, 1.1)
      room.lights.append(
        scene_lib.Light(
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
      door = looks.texture(textures.door, paint, paint * 0.85)
      parts = [
        looks_lib.box(0, -0.02, 0, 0.86, 0.04, 2.03, looks.wood, front=door),
        looks_lib.box(0, -0.02, 2.03, 1.04, 0.07, 0.09, looks.white),
      ]
      parts += [
        looks_lib.box(s * 0.475, -0.02, 0, 0.09, 0.07, 2.03, looks.white)
        for s in (-1, 1)
      ]
      room.add(looks_lib.move(parts, x, y, 0, yaw))


def _furnish(room: _Room) -> None:
  """Adds furniture at the walls and in the room, and pictures on walls."""
  rng, looks = room.rng, room.looks
  width, depth, _ = room.size
  theme = furniture.THEMES[rng.integers(len(furniture.THEMES))] or (
    furniture.AT_WALLS,
    furniture.ANYWHERE,
  )
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
        room.add(looks_lib.move(parts, x, y, 0, yaw))
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
        room.add(looks_lib.move(parts, x, y, 0, yaw))
        tall = max(p.centre[2] + p.half[2] for p in parts)
        room.focuses.append(np.array([x, y, min(tall, 1.3) * 0.7]))
        break
  if rng.uniform() < 0.6:
    w, d = rng.uniform(1.4, 2.6), rng.uniform(1.0, 2.0)
    x, y = rng.uniform(-0.15, 0.15, 2) * [width, depth]
    rug = looks.texture(
      rng.choice(
        [
          textures.rug,
          textures.rug,
          textures.stripes,
          textures.plaid,
          textures.damask,
        ]
      ),
      looks.accent(),
      looks.accent(),
    )
    if rng.uniform() < 0.25:
      part = looks_lib.tube(0, 0, 0, d / 2, 0.015, rug)
    else:
      part = looks_lib.box(0, 0, 0, w, d, 0.015, rug)
    room.add(looks_lib.move([part], x, y, 0, rng.choice([0, np.pi / 2])))
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
        looks_lib.move(
          [looks_lib.box(0, -0.02, z, w, 0.04, h, looks.dark, front=look)],
          x,
          y,
          0,
          yaw,
        )
      )


def _illuminate(room: _Room) -> None:
  """Adds ceiling lamps, and a light for each glowing lamp below."""
  rng, looks = room.rng, room.looks
  width, depth, height = room.size
  warm = rng.uniform()
  columns = 1 if width < 5.5 else 2
  places = [(c + 0.5) / columns * width - width / 2 for c in range(columns)]
  style, drop = rng.integers(3), rng.uniform(0.25, 0.7)
  # In daylight the lamps are often dim, and windows dominate the light.
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
        looks_lib.tube(x, y, z, 0.012, drop, looks.dark),
        looks_lib.blob(x, y, z - r, r, r, r, lamp),
      ]
    elif style == 1:  # A flat disc.
      z = height - 0.1
      parts = [looks_lib.tube(x, y, z, rng.uniform(0.18, 0.3), 0.1, lamp)]
    else:  # A shade.
      r, z = rng.uniform(0.2, 0.32), height - drop
      parts = [
        looks_lib.tube(x, y, z, 0.012, drop, looks.dark),
        looks_lib.tube(x, y, z - 0.1, r, 0.2, lamp),
      ]
    room.add(parts)
    room.lights.append(
      scene_lib.Light(
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
        scene_lib.Light(
          part.centre,
          np.array([0.1, 0, 0]),
          np.array([0, 0.1, 0]),
          np.array(part.look.tint) * rng.uniform(0.6, 1.8),
          np.zeros(3),
        )
      )


def build_scene(
  seed: int, index: int, resolution: int
) -> tuple[scene_lib.Scene, list[np.ndarray]]:
  """Builds scene `index`.

  Args:
    seed: Seed of the data set.
    index: Index of the scene.
    resolution: Texels per side of a texture, a power of two; affects nothing
      else.

  Returns:
    The scene, with the floor at z = 0, and points of interest.
  """
  rng = np.random.default_rng([seed, index, 0])
  looks = looks_lib.Looks(rng, resolution)
  room = _Room(rng, looks)
  _shape(room)
  _openings(room)
  _furnish(room)
  _illuminate(room)
  accent_wall = int(rng.integers(4)) if rng.uniform() < 0.6 else None
  walls = {f: looks.walls[f == accent_wall] for f in range(4)}
  shell = looks_lib.Primitive(
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
    return scene_lib.Light(**values)

  scene = scene_lib.Scene(
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
