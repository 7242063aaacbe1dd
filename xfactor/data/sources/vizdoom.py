"""Camera flights through the levels of Freedoom, rendered by ViZDoom.

A world that we did not make (`pip install -e '.[vizdoom]'` ships it): the 36
levels of Freedoom phase 1 and the 32 of phase 2, with exact cameras and exact
depth. What makes it fit for novel view synthesis:

*   The level is frozen. A patch file removes every thing (monsters, items and
    decorations are billboards that turn with the camera), every special (doors,
    lifts, flickering lights, scrolling walls), animated textures and grates.
*   The camera is free. Two scripts of a few instructions in the same patch put
    the player anywhere, so paths are smooth curves with sideways, backward and
    vertical motion, not the engine's physics.
*   The camera is a pinhole. The engine looks up and down by shearing the
    picture and its pixels are 1.2 times as tall as wide; it therefore renders a
    wide level view, from which the picture is resampled by a homography: true
    pitch and roll, square pixels, centred principal point, antialiased. Where
    the level view does not reach far enough up or down, it is sheared.
*   The depth is computed from the level's own walls, floors and ceilings; the
    engine's depth buffer has 8 bits and mixes kinds of distance. The sky has
    depth 0, unknown.

One scene unit is 64 map units, about two metres. z points up. Sector lights
and gamma are lifted, since dark rooms are near black. Levels, not walks, are
split between training and test.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import math
import os
import struct
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from xfactor.data import images, records, sources
from xfactor.errors import UserError
from xfactor.geometry import wander

TEST_LEVELS = (
  ('freedoom1', 'E1M5'),
  ('freedoom1', 'E2M3'),
  ('freedoom1', 'E3M6'),
  ('freedoom1', 'E4M2'),
  ('freedoom2', 'MAP07'),
  ('freedoom2', 'MAP13'),
  ('freedoom2', 'MAP20'),
  ('freedoom2', 'MAP26'),
)
LEVELS = tuple(
  ('freedoom1', f'E{episode}M{number}')
  for episode in range(1, 5)
  for number in range(1, 10)
) + tuple(('freedoom2', f'MAP{number:02d}') for number in range(1, 33))
TRAIN_LEVELS = tuple(level for level in LEVELS if level not in TEST_LEVELS)

UNITS = 64.0  # Map units in a scene unit.
FIELD_OF_VIEW = 65.0  # Degrees, of the square picture.

_ENGINE_FIELD_OF_VIEW = 120.0  # Leaves room to pitch and roll inside.
_PIXEL_ASPECT = 1.2  # The engine draws heights this much larger than widths.
_VIEW_HEIGHT = 41.0  # Of the camera over the player's feet, and
_HEAD_ROOM = 15.0  # from there to the top, neither of which may leave a room.
_MAX_TILT = (8.0, 4.0)  # Degrees of pitch and roll.
_CLEARANCE = 24.0  # Map units between the camera of a walk and any wall.
_MIN_CLEARANCE = 12.0  # Of other cameras, which see little from nearer.
_ROUNDING = 0.01  # Map units that the cameras of a data set may be off.
_MAX_LOOK = (-32.0, 55.0)  # Degrees that the engine looks up and down.
_SLACK = 0.01  # Of the slopes of rays, at the rim of the engine's picture.
_SUBSAMPLES = 4
# What players set, too: Freedoom's pictures have a mean level of 47 of 255.
_GAMMA = np.rint(255 * (np.arange(256) / 255) ** (1 / 1.4)).astype(np.uint8)
_INFINITY = 1e9


@dataclasses.dataclass(frozen=True)
class Source(sources.Source):
  """Walks through Freedoom.

  Attributes:
    walks: Number of clips; an eighth of them lie in the test levels.
    frames: Frames a clip.
    size: Width and height in pixels.
    seed: Decides all the paths.
    quality: Of the JPEGs.
    with_depth: Whether clips carry depth.
    paths: Kinds of camera paths with commas between them, of which each walk
      draws one: degrees of freedom of `wander.FREEDOMS` that wander, joined by
      '+', as in 'pan+tilt,slide+push'. If empty, smooth walks and flights.
    turn: Speed at which `paths` turn, degrees a frame, 0 to 10.
    move: Speed at which they move, scene units a frame, 0 to 0.5.
  """

  name: ClassVar[str] = 'vizdoom'
  version: ClassVar[str] = '1.0.0'
  description: ClassVar[str] = (
    "Camera flights through Freedoom's levels with exact cameras and depth."
  )

  walks: int = 256
  frames: int = 48
  size: int = 64
  seed: int = 0
  quality: int = 95
  with_depth: bool = True
  paths: str = ''
  turn: float = 2.0
  move: float = 0.05

  def __post_init__(self):
    for kind in self._kinds():
      if wander.parse(kind) is None:
        raise UserError(
          f'the vizdoom source has no paths of kind {kind!r}; join with + some '
          f'of {", ".join(wander.FREEDOMS)}'
        )
    for option, high in (('turn', 10), ('move', 0.5)):
      value = getattr(self, option)
      if not 0 <= value <= high:
        raise UserError(
          f'the vizdoom source needs {option} between 0 and {high}, not {value}'
        )

  def _kinds(self) -> list[str]:
    return self.paths.split(',') if self.paths else []

  def items(self) -> list[sources.Item]:
    """Lists one item a walk; see the base class."""
    for option in ('walks', 'frames', 'size'):
      if getattr(self, option) < 1:
        raise UserError(
          f'{option}={getattr(self, option)} makes no vizdoom data; give '
          'a number of at least 1'
        )
    _folder()
    test = self.walks // 8
    out = []
    for split, levels, count in (
      ('train', TRAIN_LEVELS, self.walks - test),
      ('test', TEST_LEVELS, test),
    ):
      for i in range(count):
        wad, level = levels[i % len(levels)]
        number = i // len(levels)
        out.append(
          sources.Item(
            id=f'{wad}_{level.lower()}/{number:04d}',
            payload=(wad, level, number),
            split=split,
            size=self.frames * self.size**2,
          )
        )
    return sorted(out, key=lambda item: item.id)

  def clips(self, item: sources.Item) -> Iterator[sources.Clip]:
    """Yields the one clip of a walk; see the base class."""
    wad, name, number = item.payload
    _, level = _load(wad, name)
    rng = np.random.default_rng(
      [self.seed, zlib.crc32(f'{wad}/{name}'.encode()), number]
    )
    path = self._plan(level, rng)
    frames, poses, depths = [], [], []
    with _running(wad, name, self.size) as engine:
      for position, rgb, rotation in engine.views(path):
        frames.append(images.encode_jpeg(rgb, self.quality))
        translation = -rotation @ position / UNITS
        poses.append(np.concatenate([rotation, translation[:, None]], 1))
        if self.with_depth:
          rays = _pixel_rays(self.size) @ rotation
          z = cast(level, position, rays.reshape(-1, 3), 2 * self.size)
          depths.append(_encode_depth(z.reshape(self.size, -1) / UNITS))
    focal = 0.5 / math.tan(math.radians(FIELD_OF_VIEW) / 2)
    yield sources.Clip(
      id=item.id,
      frames=frames,
      height=self.size,
      width=self.size,
      timestamps=np.arange(self.frames) / 35.0,
      intrinsics=np.tile(
        np.array([focal, focal, 0.5, 0.5], np.float32), (self.frames, 1)
      ),
      world_to_camera=np.stack(poses).astype(np.float32),
      depth=depths if self.with_depth else None,
    )

  def _plan(self, level: 'Level', rng: np.random.Generator) -> 'Path':
    kinds = self._kinds()
    if not kinds:
      return plan_path(level, rng, self.frames)
    return plan_wander(
      level,
      rng,
      self.frames,
      wander.parse(kinds[rng.integers(len(kinds))]),
      turn=math.radians(self.turn),
      move=self.move * UNITS,
    )

  def is_free(
    self, clip: records.Clip, world_to_camera: Float[np.ndarray, 'n 3 4']
  ) -> Bool[np.ndarray, ' n']:
    """Which cameras see the level of a clip as `redraw` can draw it.

    They stand clear of walls, and the engine looks as far up and down.
    """
    _, level = _load(*_level_of(clip))
    rotation, position = _cameras(world_to_camera)
    yaw, _, _ = wander.angles(rotation)
    looks = [look_of(*view) for view in zip(yaw, rotation, strict=True)]
    return (
      _room(level, position, _ROUNDING)
      & (clearance(level, position) >= _MIN_CLEARANCE)
      & np.array([look is not None for look in looks], bool)
    )

  def redraw(
    self, clip: records.Clip, world_to_camera: Float[np.ndarray, 'n 3 4']
  ) -> UInt8[np.ndarray, 'n s s 3']:
    """Draws the level of a clip anew, as its frames were before the JPEG.

    The engine stays open for the next call.

    Args:
      clip: Of a data set that this source made.
      world_to_camera: Free cameras, in the clip's world, in scene units.
    """
    wad, name = _level_of(clip)
    _, level = _load(wad, name)
    rotation, position = _cameras(world_to_camera)
    sector = sector_of(level, position[:, :2])
    # A hair under the floor, the engine would not put the player there.
    position[:, 2] = position[:, 2].clip(
      level.floor[sector] + _VIEW_HEIGHT, level.ceiling[sector] - _HEAD_ROOM
    )
    pictures = np.zeros((len(position), self.size, self.size, 3), np.uint8)
    path = Path(position, *wander.angles(rotation))
    with _running(wad, name, self.size) as engine:
      for i, (_, picture, _) in enumerate(engine.views(path)):
        pictures[i] = picture
    return pictures


def is_installed() -> bool:
  """Whether the ViZDoom package is there."""
  return importlib.util.find_spec('vizdoom') is not None


def _level_of(clip: records.Clip) -> tuple[str, str]:
  """Returns the WAD and the level of a clip's walk."""
  wad, level = clip.id.partition('/')[0].split('_')
  return wad, level.upper()


def _cameras(
  world_to_camera: Float[np.ndarray, 'n 3 4'],
) -> tuple[Float[np.ndarray, 'n 3 3'], Float[np.ndarray, 'n 3']]:
  """Returns rotations and where they are on the map."""
  pose = world_to_camera.astype(np.float64)
  rotation, translation = pose[:, :, :3], pose[:, :, 3]
  return rotation, -np.einsum('nij,ni->nj', rotation, translation) * UNITS


def _folder() -> str:
  """Returns where the package keeps Freedoom's levels."""
  spec = importlib.util.find_spec('vizdoom')
  if spec is None or spec.origin is None:
    raise UserError(
      'the vizdoom source needs the ViZDoom package; install it with '
      "`pip install -e '.[vizdoom]'`"
    )
  return os.path.dirname(spec.origin)


# ------------------------------------------------------------------- levels


@dataclasses.dataclass(frozen=True)
class Level:
  """What of a level's geometry stops light.

  Attributes:
    start: [L, 2] first end of each line, in map units.
    edge: [L, 2] from there to the other end.
    front: [L] sector on the right of the line.
    back: [L] sector on its left, -1 for a wall without one.
    floor: [S] height of each sector's floor.
    ceiling: [S] height of its ceiling.
    sky: [2, S] whether the floor, the ceiling is sky.
  """

  start: np.ndarray
  edge: np.ndarray
  front: np.ndarray
  back: np.ndarray
  floor: np.ndarray
  ceiling: np.ndarray
  sky: np.ndarray


_LINE = np.dtype(
  [
    ('ends', '<u2', 2),
    ('flags', '<i2'),
    ('special', '<i2', 2),
    ('sides', '<u2', 2),
  ]
)
_SIDE = np.dtype(
  [
    ('offset', '<i2', 2),
    ('upper', 'S8'),
    ('lower', 'S8'),
    ('middle', 'S8'),
    ('sector', '<u2'),
  ]
)
_SECTOR = np.dtype(
  [
    ('heights', '<i2', 2),
    ('flats', 'S8', 2),
    ('light', '<i2'),
    ('special', '<i2', 2),
  ]
)
_NO_SIDE = 0xFFFF


def read_level(path: str, name: str) -> dict[str, bytes]:
  """Reads the lumps of the level `name` of a WAD file."""
  with open(path, 'rb') as f:
    _, count, directory = struct.unpack('<4sii', f.read(12))
    f.seek(directory)
    entries = [struct.unpack('<ii8s', f.read(16)) for _ in range(count)]
    names = [entry[2].rstrip(b'\0').decode() for entry in entries]
    first = names.index(name)
    lumps = {}
    for i in range(first, first + 11):
      f.seek(entries[i][0])
      lumps[names[i]] = f.read(entries[i][1])
  return lumps


# The walks of a level are converted one after another.
@functools.lru_cache(maxsize=4)
def _load(wad: str, name: str) -> tuple[dict[str, bytes], 'Level']:
  """Returns the lumps and the geometry of a level of Freedoom."""
  lumps = read_level(os.path.join(_folder(), f'{wad}.wad'), name)
  return lumps, parse_level(lumps)


def parse_level(lumps: dict[str, bytes]) -> Level:
  """Turns the lumps of a level into its geometry."""
  corners = np.frombuffer(lumps['VERTEXES'], '<i2').reshape(-1, 2)
  lines = np.frombuffer(lumps['LINEDEFS'], _LINE)
  sector_of = np.frombuffer(lumps['SIDEDEFS'], _SIDE)['sector'].astype(int)
  sectors = np.frombuffer(lumps['SECTORS'], _SECTOR)
  # The sector behind a side that is not there is -1.
  none = lines['sides'] == _NO_SIDE
  front, back = np.where(
    none, -1, sector_of[np.where(none, 0, lines['sides'])]
  ).T
  keep = front != back
  ends = corners[lines['ends'][keep]].astype(np.float64)
  return Level(
    start=ends[:, 0],
    edge=ends[:, 1] - ends[:, 0],
    front=front[keep],
    back=back[keep],
    floor=sectors['heights'][:, 0].astype(np.float64),
    ceiling=sectors['heights'][:, 1].astype(np.float64),
    sky=(sectors['flats'] == b'F_SKY1').T,
  )


def freeze_level(lumps: dict[str, bytes]) -> dict[str, bytes]:
  """Removes from a level all that moves, turns with the camera or is dark."""
  things = lumps['THINGS']
  lines = np.frombuffer(lumps['LINEDEFS'], _LINE).copy()
  sides = np.frombuffer(lumps['SIDEDEFS'], _SIDE).copy()
  sectors = np.frombuffer(lumps['SECTORS'], _SECTOR).copy()
  lines['special'] = 0
  sectors['special'] = 0
  sectors['light'] = 144 + sectors['light'].clip(0, 255) * 7 // 16
  solid = lines['sides'][:, 1] == _NO_SIDE
  passable = np.ones(len(sides), bool)
  passable[lines['sides'][solid, 0]] = False
  # Grates hang in the openings between sectors: no depth could be true there.
  sides['middle'][passable] = b'-'
  # A step without texture lets the engine draw whatever lies behind it.
  spare = np.where(sides['lower'] != b'-', sides['lower'], sides['upper'])
  spare = np.where(spare == b'-', b'STONE2', spare)
  for part in ('upper', 'lower'):
    bare = passable & (sides[part] == b'-')
    sides[part][bare] = spare[bare]
  start = next(
    things[i : i + 10]
    for i in range(0, len(things), 10)
    if things[i + 6 : i + 8] == b'\x01\x00'
  )
  return lumps | {
    'THINGS': start,
    'LINEDEFS': lines.tobytes(),
    'SIDEDEFS': sides.tobytes(),
    'SECTORS': sectors.tobytes(),
  }


def camera_scripts() -> bytes:
  """Returns scripts 1 (x, y, z, angle) and 2 (pitch), which put the player so.

  Compiled by hand: `SetActorPosition(0, x, y, z, 0); SetActorAngle(0, angle)`
  and `SetActorPitch(0, pitch)`.
  """
  terminate, push, argument = 1, 3, 28
  set_position, set_angle, set_pitch = 283, 276, 332
  position = [push, 0, argument, 0, argument, 1, argument, 2, push, 0]
  angle = [push, 0, argument, 3, set_angle]
  first = [*position, set_position, *angle, terminate]
  code = [*first, push, 0, argument, 0, set_pitch, terminate]
  body = struct.pack(f'<{len(code)}i', *code)
  # Number, begin and number of arguments of each; then no strings.
  scripts = [1, 8, 4, 2, 8 + 4 * len(first), 1]
  directory = struct.pack('<8i', 2, *scripts, 0)
  return b'ACS\0' + struct.pack('<i', 8 + len(body)) + body + directory


def write_patch(path: str, lumps: dict[str, bytes]) -> None:
  """Writes the WAD that puts a frozen level in the place of the original."""
  extra = {
    'ANIMATED': b'\xff',
    'LOADACS': b'XFCAMERA',
    'A_START': b'',
    'XFCAMERA': camera_scripts(),
    'A_END': b'',
  }
  body, directory = b'', b''
  for name, lump in (freeze_level(lumps) | extra).items():
    directory += struct.pack('<ii8s', 12 + len(body), len(lump), name.encode())
    body += lump
  header = struct.pack('<4sii', b'PWAD', len(directory) // 16, 12 + len(body))
  with open(path, 'wb') as f:
    f.write(header + body + directory)


# ---------------------------------------------------------------------- rays


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _crossings(
  level: Level, origin: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Finds the lines that rays in the plane of the map cross, nearest first.

  Args:
    level: The level.
    origin: [2].
    directions: [K, 2]; distances are in their lengths.

  Returns:
    distance, line, near sector and far sector, each [K, M], filled up with
    infinity, 0, -1 and -1.
  """
  start = level.start - origin
  # A line is met where its ends lie on two sides of the ray and it is ahead.
  side = _cross(directions[:, None], start)
  determinant = _cross(directions[:, None], level.edge)
  ray, line = np.nonzero((side <= 0) != (side + determinant <= 0))
  determinant = determinant[ray, line]
  distance = _cross(start, level.edge)[line] / determinant
  ahead = distance > 1e-6
  ray, line, distance, determinant = (
    part[ahead] for part in (ray, line, distance, determinant)
  )
  order = np.lexsort((distance, ray))
  ray, line, distance, determinant = (
    part[order] for part in (ray, line, distance, determinant)
  )
  first = np.searchsorted(ray, np.arange(len(directions)))
  rank = np.arange(len(ray)) - first[ray]
  shape = len(directions), int(rank.max(initial=0)) + 1
  from_right = determinant < 0
  front, back = level.front[line], level.back[line]
  out = []
  for fill, values in (
    (_INFINITY, distance),
    (0, line),
    (-1, np.where(from_right, front, back)),
    (-1, np.where(from_right, back, front)),
  ):
    table = np.full(shape, fill, values.dtype)
    table[ray, rank] = values
    out.append(table)
  return tuple(out)


def cast(
  level: Level, origin: np.ndarray, rays: np.ndarray, columns: int
) -> np.ndarray:
  """Returns how many `rays` away from `origin` the level is: z-depth.

  Follows each ray from sector to sector through the lines between them, as
  Doom's own levels are walls, floors and ceilings only. Which lines a ray
  crosses is looked up in the nearest of `columns` vertical planes; distances
  are then those of the ray itself.

  Args:
    level: The level.
    origin: [3] in map units.
    rays: [P, 3], less than a right angle apart.
    columns: Number of planes.

  Returns:
    float64 [P]; 0 for the sky and where the level has no inside.
  """
  forward = rays[:, :2].mean(0)
  forward /= np.linalg.norm(forward)
  ahead = rays[:, :2] @ forward
  aside = _cross(rays[:, :2], forward) / ahead
  planes = np.linspace(aside.min(), aside.max() + 1e-9, columns)
  right = np.array([forward[1], -forward[0]])
  table = _crossings(level, origin[:2], forward + planes[:, None] * right)
  step = planes[1] - planes[0]
  column = np.rint((aside - planes[0]) / step).astype(int)
  slope = rays[:, 2] / ahead
  plan = forward + aside[:, None] * right
  out = np.zeros(len(rays))
  todo = np.arange(len(rays))
  for distance, line, near, far in (
    [part[:, i] for part in table] for i in range(table[0].shape[1])
  ):
    k, m = column[todo], slope[todo]
    inside = near[k] >= 0
    todo, k, m = todo[inside], k[inside], m[inside]
    if not todo.size:
      break
    sector, beyond = near[k], far[k]
    end = distance[k]
    falling = m < 0
    plane = np.where(falling, level.floor[sector], level.ceiling[sector])
    with np.errstate(divide='ignore', invalid='ignore'):
      to_plane = np.where(m == 0, _INFINITY, (plane - origin[2]) / m)
    hits_plane = to_plane <= end
    clear = hits_plane & ~level.sky[np.where(falling, 0, 1), sector]
    out[todo[clear]] = to_plane[clear]
    height = origin[2] + m * end
    above = height > level.ceiling[beyond]
    wall = (beyond < 0) | (height < level.floor[beyond]) | above
    open_sky = level.sky[1, sector] & level.sky[1, beyond]
    hidden = (beyond >= 0) & above & open_sky
    hit = ~hits_plane & wall & ~hidden
    chosen = line[k[hit]]
    # The ray's own distance, not its column's; the two part only where the
    # wall is seen edge-on, and there the column's is the safe one.
    exact = _cross(level.start[chosen] - origin[:2], level.edge[chosen])
    with np.errstate(divide='ignore', invalid='ignore'):
      exact = exact / _cross(plan[todo[hit]], level.edge[chosen])
    close = np.abs(exact - end[hit]) < 0.1 * end[hit]
    out[todo[hit]] = np.where(close, exact, end[hit])
    todo = todo[~hits_plane & ~wall]
  return out / ahead


def sector_of(level: Level, points: np.ndarray) -> np.ndarray:
  """Returns the sector of each of `points` [N, 2], -1 outside the level."""
  # An odd direction, so that the ray does not run along a wall.
  direction = np.array([[0.7531, 0.6579]])
  return np.array(
    [_crossings(level, point, direction)[2][0, 0] for point in points], int
  )


def clearance(level: Level, points: np.ndarray) -> np.ndarray:
  """Returns the distance from [N, 3] to the nearest line that is not open.

  A line is open at a height where a camera passes between the floors and the
  ceilings of both its sectors.
  """
  offset = points[:, None, :2] - level.start
  length = np.maximum((level.edge**2).sum(-1), 1e-9)
  along = ((offset * level.edge).sum(-1) / length).clip(0, 1)
  away = np.linalg.norm(offset - along[..., None] * level.edge, axis=-1)
  floor = np.maximum(level.floor[level.front], level.floor[level.back])
  ceiling = np.minimum(level.ceiling[level.front], level.ceiling[level.back])
  z = points[:, 2:]
  passes = (level.back >= 0) & (z > floor + 12) & (z < ceiling - 8)
  return np.where(passes, _INFINITY, away).min(1)


# --------------------------------------------------------------------- paths


@dataclasses.dataclass(frozen=True)
class Path:
  """Where a camera goes.

  Attributes:
    position: [N, 3] in map units.
    yaw: [N] radians, anticlockwise from east.
    pitch: [N] radians, positive up.
    roll: [N] radians, positive clockwise.
  """

  position: np.ndarray
  yaw: np.ndarray
  pitch: np.ndarray
  roll: np.ndarray


_ATTEMPTS = 4000


def plan_path(level: Level, rng: np.random.Generator, frames: int) -> Path:
  """Draws a smooth path that stays clear of walls and shows something.

  Raises:
    UserError: If the level has no room for one.
  """
  return _first_path(level, lambda scale: _draw_path(level, rng, frames, scale))


def plan_wander(
  level: Level,
  rng: np.random.Generator,
  frames: int,
  freedoms: tuple[str, ...],
  *,
  turn: float,
  move: float,
) -> Path:
  """Draws a path that wanders, stays clear of walls and shows something.

  Args:
    level: The level.
    rng: Source of the draw.
    frames: Frames of the path.
    freedoms: What wanders, of `wander.FREEDOMS`.
    turn: Radians a frame, as `wander.wander` wants them.
    move: Map units a frame; less where the level has no room for it.

  Raises:
    UserError: If the level has no room for one.
  """
  return _first_path(
    level,
    lambda scale: _draw_wander(
      level, rng, frames, freedoms, turn, move * scale
    ),
    max(frames // 4, 5),
  )


def _first_path(
  level: Level, draw: Callable[[float], Path | None], *moments: int
) -> Path:
  """The first path drawn that shows something; later ones are smaller."""
  for attempt in range(_ATTEMPTS):
    # Cramped levels get shorter paths rather than none.
    path = draw(0.999**attempt)
    if path is not None and _shows_something(level, path, *moments):
      return path
  raise UserError(
    'no camera path fits into this level; use another seed, or remove the '
    "level from vizdoom's lists"
  )


def _draw_wander(
  level: Level,
  rng: np.random.Generator,
  frames: int,
  freedoms: tuple[str, ...],
  turn: float,
  move: float,
) -> Path | None:
  """Draws one path; None where it would leave the level or graze a wall."""
  start = rng.uniform(level.start.min(0), level.start.max(0))
  sector = sector_of(level, start[None])[0]
  if sector < 0:
    return None
  floor = level.floor[sector]
  bottom = floor + _VIEW_HEIGHT
  top = min(level.ceiling[sector] - _HEAD_ROOM, floor + 200)
  if top < bottom:
    return None
  eye = np.append(start, rng.uniform(bottom, top))
  if clearance(level, eye[None])[0] < _CLEARANCE:
    return None
  yaw = _open_bearing(level, rng, start)
  drawn = wander.wander(
    rng, frames, freedoms, eye=eye, yaw=yaw, turn=turn, move=move
  )
  steps = np.linalg.norm(np.diff(drawn.eyes, axis=0), axis=1)
  # A longer step may cross a wall that neither of its ends is near.
  if (steps >= 2 * _CLEARANCE).any():
    return None
  if clearance(level, drawn.eyes).min() < _CLEARANCE:
    return None
  if not _has_room(level, drawn.eyes):
    return None
  return Path(drawn.eyes, drawn.yaw, drawn.pitch, drawn.roll)


def _wave(
  rng: np.random.Generator, u: np.ndarray, amplitude: float
) -> np.ndarray:
  """Returns a slow random oscillation over `u` in [0, 1]."""
  phases = rng.uniform(0, 2 * np.pi, 2)
  cycles = rng.uniform([0.3, 0.8], [0.8, 1.6])
  size = amplitude * rng.normal(size=2) * [1.0, 0.4]
  return (size * np.sin(2 * np.pi * cycles * u[:, None] + phases)).sum(1)


def _draw_path(
  level: Level, rng: np.random.Generator, frames: int, scale: float
) -> Path | None:
  """Draws one path; None where it would leave the level or graze a wall."""
  low, high = level.start.min(0), level.start.max(0)
  start = rng.uniform(low, high)
  sector = sector_of(level, start[None])[0]
  if sector < 0 or level.ceiling[sector] - level.floor[sector] < 72:
    return None
  u = np.linspace(0, 1, max(frames, 64))
  length = rng.uniform(160, 480) * scale
  bearing = _open_bearing(level, rng, start)
  bearing = bearing + _wave(rng, u, math.radians(25))
  steps = np.stack([np.cos(bearing), np.sin(bearing)], 1)
  plan = start + np.cumsum(steps, 0) * length / (len(u) - 1)
  sectors = sector_of(level, plan)
  if (sectors < 0).any():
    return None
  floor, ceiling = level.floor[sectors], level.ceiling[sectors]
  if rng.uniform() < 0.6:  # A walk: at eye height over the smoothed floor.
    width = len(u) // 6
    kernel = np.hanning(2 * width + 1)
    padded = np.pad(floor, width, mode='edge')
    z = np.convolve(padded, kernel / kernel.sum(), 'valid') + _wave(rng, u, 4)
    z = z + _VIEW_HEIGHT + rng.uniform(4, 24)
  else:  # A flight.
    bottom = floor[0] + _VIEW_HEIGHT
    top = min(ceiling[0] - 16, floor[0] + 200)
    if top < bottom:
      return None
    z = rng.uniform(bottom, top) + _wave(rng, u, 24)
  position = np.concatenate([plan, z[:, None]], 1)
  if not _has_room(level, position):
    return None
  if clearance(level, position).min() < _CLEARANCE:
    return None
  # Mostly looking where it goes, often sideways, at times backing off.
  offset = rng.choice(
    [rng.normal(0, 15), rng.uniform(-110, 110), rng.normal(180, 15)],
    p=[0.5, 0.35, 0.15],
  )
  turn = rng.uniform(-35, 35) * (u - 0.5)
  yaw = bearing + np.radians(offset + turn) + _wave(rng, u, math.radians(8))
  tilt = [
    np.radians(limit * np.tanh(_wave(rng, u, 0.5) + rng.normal(0, 0.3)))
    for limit in _MAX_TILT
  ]
  at = np.linspace(0, 1, frames)
  path = Path(
    *(
      np.stack([np.interp(at, u, x) for x in curve.T], -1)
      if curve.ndim == 2
      else np.interp(at, u, curve)
      for curve in (position, yaw, *tilt)
    )
  )
  # Between two points of the curve a frame may come to lie beyond a step.
  return path if _has_room(level, path.position) else None


def _has_room(level: Level, position: np.ndarray) -> bool:
  """Whether the engine puts a player at all of [N, 3]."""
  return bool(_room(level, position).all())


def _room(level: Level, position: np.ndarray, slack: float = 0.0) -> np.ndarray:
  """Whether a player fits, but for `slack`, at each of [N, 3]."""
  sectors = sector_of(level, position[:, :2])
  feet, head = position[:, 2] - _VIEW_HEIGHT, position[:, 2] + _HEAD_ROOM
  low, high = level.floor[sectors], level.ceiling[sectors]
  return (sectors >= 0) & (feet >= low - slack) & (head <= high + slack)


def _open_bearing(
  level: Level, rng: np.random.Generator, start: np.ndarray
) -> float:
  """Draws a bearing in favour of those with far walls."""
  bearings = np.arange(16) * np.pi / 8 + rng.uniform(0, np.pi / 8)
  directions = np.stack([np.cos(bearings), np.sin(bearings)], 1)
  distance, line, _, far = _crossings(level, start, directions)
  # A step of more than 24 units stops a walker and most cameras too.
  floor = np.where(far < 0, _INFINITY, level.floor[far])
  blocked = floor > level.floor[sector_of(level, start[None])[0]] + 24
  room = np.where(blocked, distance, _INFINITY).min(1).clip(1, 1024)
  return float(rng.choice(bearings, p=room**2 / (room**2).sum()))


def _shows_something(level: Level, path: Path, views: int = 5) -> bool:
  """Whether views along the path are neither of a wall nor of the sky."""
  rays = _pixel_rays(12).reshape(-1, 3)
  for i in np.linspace(0, len(path.yaw) - 1, views).astype(int):
    rotation = rotation_of(path.yaw[i], path.pitch[i], path.roll[i])
    depth = cast(level, path.position[i], rays @ rotation, 24)
    seen = depth[depth > 0]
    if len(seen) < 0.6 * len(depth):
      return False
    if (seen < 56).mean() > 0.1 or not 128 < np.median(seen) < 1024:
      return False
  return True


# ------------------------------------------------------------------- cameras


def rotation_of(yaw: float, pitch: float, roll: float) -> np.ndarray:
  """Returns the [3, 3] world-to-camera rotation, OpenCV, of angles in radians.

  The world is Doom's: x east, y north, z up; `yaw` is anticlockwise from east.
  """
  forward = np.array(
    [
      math.cos(yaw) * math.cos(pitch),
      math.sin(yaw) * math.cos(pitch),
      math.sin(pitch),
    ]
  )
  right = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
  down = np.cross(forward, right)
  c, s = math.cos(roll), math.sin(roll)
  return np.stack([c * right + s * down, c * down - s * right, forward])


def _pixel_rays(size: int, subsamples: int = 1) -> np.ndarray:
  """Returns [size * subsamples, size * subsamples, 3] rays with z = 1."""
  count = size * subsamples
  at = (np.arange(count) + 0.5) / count * 2 - 1
  at = at * math.tan(math.radians(FIELD_OF_VIEW) / 2)
  x, y = np.meshgrid(at, at)
  return np.stack([x, y, np.ones_like(x)], -1)


def _encode_depth(z: np.ndarray) -> bytes:
  """Encodes z-depth in scene units as a 16-bit PNG in thousandths."""
  thousandths = np.rint(z * 1000)
  thousandths[thousandths > 65535] = 0
  out = io.BytesIO()
  Image.fromarray(thousandths.astype(np.uint16)).save(out, 'png')
  return out.getvalue()


# -------------------------------------------------------------------- engine


class _Engine:
  """A running game in which only the camera moves."""

  def __init__(self, game: Any, size: int):
    self._game = game
    self._rays = _pixel_rays(size, _SUBSAMPLES).astype(np.float32)
    self._look = 0  # Of the player, in the engine's units; positive is down.

  def views(
    self, path: Path
  ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields position [3], RGB [size, size, 3] and rotation [3, 3].

    Raises:
      ValueError: If a view reaches further up or down than the engine does.
    """
    for position, yaw, pitch, roll in zip(
      path.position, path.yaw, path.pitch, path.roll, strict=True
    ):
      rotation = rotation_of(yaw, pitch, roll)
      look = look_of(yaw, rotation)
      if look is None:
        raise ValueError(f'pitch {pitch} and roll {roll} are beyond the engine')
      seen, screen, engine_yaw = self._see(position, yaw, look)
      level = rotation_of(engine_yaw, 0.0, 0.0)
      turn = (rotation @ level.T).astype(np.float32)
      rgb = _resample(screen, self._rays @ turn, look)
      yield seen, rgb, rotation

  def _see(
    self, position: np.ndarray, yaw: float, look: int
  ) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns the camera's position, the screen and the engine's yaw."""
    turn = _engine_turn(yaw)
    x, y, z = (round(v * 65536) for v in position - [0, 0, _VIEW_HEIGHT])
    self._game.send_game_command(f'puke 1 {x} {y} {z} {turn * 8}')
    if look != self._look:
      self._game.send_game_command(f'puke 2 {look * 8}')
      self._look = look
    wanted = np.array([*position, turn * 360 / 8192, look * 360 / 8192])
    # The script runs in the tic after the command, and the engine smooths a
    # change of height over a few more.
    for _ in range(12):
      self._game.advance_action()
      state = self._game.get_state()
      *seen, fov = state.game_variables
      error = np.abs(seen - wanted)
      error[3] = min(error[3], 360 - error[3])
      if error.max() < 0.01 and abs(fov - _ENGINE_FIELD_OF_VIEW) < 0.01:
        return np.array(seen[:3]), state.screen_buffer, math.radians(seen[3])
    raise RuntimeError(f'ViZDoom put the camera at {seen} instead of {wanted}')


def _engine_turn(yaw: float) -> int:
  """The nearest yaw of the 8192 that the renderer knows."""
  # What is left is for the homography.
  return round(yaw / (2 * math.pi) * 8192) % 8192


def look_of(yaw: float, rotation: np.ndarray) -> int | None:
  """How far the engine must look down so that its picture holds a view.

  Args:
    yaw: That the engine looks at, radians.
    rotation: World to camera [3, 3].

  Returns:
    8192nds of a turn, the least that do; 0 for most. None if there are none.
  """
  level = rotation_of(_engine_turn(yaw) / 8192 * 2 * math.pi, 0.0, 0.0)
  # To the corners of the picture, which is convex.
  edge = math.tan(math.radians(FIELD_OF_VIEW) / 2)
  corners = np.array(
    [[x, y, 1.0] for x in (-edge, edge) for y in (-edge, edge)]
  )
  x, y, z = (corners @ rotation @ level.T).T
  right = math.tan(math.radians(_ENGINE_FIELD_OF_VIEW) / 2) - _SLACK
  if (z < 0.1).any() or (np.abs(x) > right * z).any():
    return None
  down = right * 3 / 4 / _PIXEL_ASPECT - _SLACK
  # A sheared picture reaches from `shift - down` to `shift + down`.
  low, high = (y / z).max() - down, (y / z).min() + down
  if low > high:
    return None
  look = round(math.atan(min(max(0.0, low), high)) / (2 * math.pi) * 8192)
  return look if _MAX_LOOK[0] < look * 360 / 8192 < _MAX_LOOK[1] else None


def _resample(screen: np.ndarray, rays: np.ndarray, look: int) -> np.ndarray:
  """Samples the engine's picture along rays of its level camera.

  Args:
    screen: uint8 [H, W, 3].
    rays: [S * k, S * k, 3] of which blocks of k x k make a pixel.
    look: How far the engine looks down, in 8192nds of a turn.

  Returns:
    uint8 [S, S, 3].
  """
  height, width, _ = screen.shape
  focal = width / 2 / math.tan(math.radians(_ENGINE_FIELD_OF_VIEW) / 2)
  horizon = height / 2
  horizon -= focal * _PIXEL_ASPECT * math.tan(look / 8192 * 2 * math.pi)
  u = width / 2 + focal * rays[..., 0] / rays[..., 2]
  v = horizon + focal * _PIXEL_ASPECT * rays[..., 1] / rays[..., 2]
  index = v.astype(np.intp) * width + u.astype(np.intp)
  samples = screen.reshape(-1, 3)[index]
  count = len(rays) // _SUBSAMPLES
  # Much faster than both axes at once.
  columns = samples.reshape(count, _SUBSAMPLES, -1).sum(1, dtype=np.uint16)
  total = columns.reshape(count, count, _SUBSAMPLES, 3).sum(2, dtype=np.uint16)
  return _GAMMA[(total + _SUBSAMPLES**2 // 2) // _SUBSAMPLES**2]


@contextlib.contextmanager
def _running(wad: str, level: str, size: int) -> Iterator[_Engine]:
  """Lends the engine of a level, which stays open but for errors."""
  try:
    yield _engine(wad, level, size)
  except BaseException:
    # Whatever the player does now.
    _engine.cache_clear()
    raise


# To start one takes as long as thirty views.
@functools.lru_cache(maxsize=2)
def _engine(wad: str, level: str, size: int) -> _Engine:
  """Runs ViZDoom on a frozen level, without window, sound or leftovers."""
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(
      tempfile.TemporaryDirectory(prefix='xfactor_vizdoom_')
    )
    game = _game(wad, level, size, folder)
    # The engine leaves folders where it is started.
    with contextlib.chdir(folder):
      game.init()
    stack.callback(game.close)
    for command in ('noclip', 'notarget', 'god', 'sv_gravity 0'):
      game.send_game_command(command)
    game.send_game_command(f'fov {_ENGINE_FIELD_OF_VIEW:.0f}')
    for _ in range(15):
      game.advance_action()
    engine = _Engine(game, size)
    # When it is forgotten, or the process ends.
    weakref.finalize(engine, stack.pop_all().close)
  return engine


def _game(wad: str, level: str, size: int, folder: str) -> Any:
  """Returns ViZDoom, ready to start; its files go into `folder`."""
  import vizdoom

  patch = os.path.join(folder, 'patch.wad')
  lumps, _ = _load(wad, level)
  write_patch(patch, lumps)
  game = vizdoom.DoomGame()
  game.set_doom_game_path(os.path.join(_folder(), f'{wad}.wad'))
  game.set_doom_scenario_path(patch)
  game.set_doom_map(level)
  game.set_doom_config_path(os.path.join(folder, 'vizdoom.ini'))
  # At least twice as fine as the picture, and most often four times.
  resolution = next(
    name
    for name, limit in (
      ('RES_640X480', 96),
      ('RES_1280X960', 192),
      ('RES_1600X1200', math.inf),
    )
    if size <= limit
  )
  game.set_screen_resolution(getattr(vizdoom.ScreenResolution, resolution))
  game.set_screen_format(vizdoom.ScreenFormat.RGB24)
  for part in (
    *('hud', 'crosshair', 'weapon', 'decals', 'particles', 'messages'),
    *('effects_sprites', 'corpses', 'screen_flashes'),
  ):
    getattr(game, f'set_render_{part}')(False)
  game.set_window_visible(False)
  game.set_sound_enabled(False)
  game.set_console_enabled(False)
  game.set_available_game_variables(
    [
      getattr(vizdoom.GameVariable, f'CAMERA_{variable}')
      for variable in (
        *('POSITION_X', 'POSITION_Y', 'POSITION_Z', 'ANGLE', 'PITCH', 'FOV'),
      )
    ]
  )
  for argument in ('+sv_cheats 1', '+cl_capfps 1', '+movebob 0'):
    game.add_game_args(argument)
  game.set_mode(vizdoom.Mode.PLAYER)
  game.set_seed(1)
  game.set_episode_timeout(0)
  return game
