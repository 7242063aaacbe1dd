"""Reads Doom levels, casts rays in them and finds room for cameras."""

import dataclasses
import functools
import importlib.util
import math
import os
import struct

import numpy as np

from xfactor.errors import UserError

UNITS = 64.0  # Map units per scene unit.
FIELD_OF_VIEW = 65.0  # Degrees, of the square picture.
INFINITY = 1e9


def game_folder() -> str:
  """Returns the folder of the ViZDoom package with the Freedoom levels."""
  spec = importlib.util.find_spec('vizdoom')
  if spec is None or spec.origin is None:
    raise UserError(
      'the vizdoom source needs the ViZDoom package; install it with '
      "`pip install -e '.[vizdoom]'`"
    )
  return os.path.dirname(spec.origin)


@dataclasses.dataclass(frozen=True)
class Level:
  """Visible geometry of a level: L lines and S sectors.

  Attributes:
    start: [L, 2] first end of each line, in map units.
    edge: [L, 2] vector from there to the other end.
    front: [L] sector on the right of each line.
    back: [L] sector on the left of each line, -1 for one-sided walls.
    floor: [S] height of each sector's floor.
    ceiling: [S] height of each sector's ceiling.
    sky: [2, S] whether the floor and the ceiling are sky.
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
  """Reads the lumps of the level `name` from a WAD file."""
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


# The clips of a level are converted one after another.
@functools.lru_cache(maxsize=4)
def load(wad: str, name: str) -> tuple[dict[str, bytes], 'Level']:
  """Returns the lumps and the geometry of a level of Freedoom."""
  lumps = read_level(os.path.join(game_folder(), f'{wad}.wad'), name)
  return lumps, parse_level(lumps)


def parse_level(lumps: dict[str, bytes]) -> Level:
  """Parses the geometry of a level from its lumps."""
  corners = np.frombuffer(lumps['VERTEXES'], '<i2').reshape(-1, 2)
  lines = np.frombuffer(lumps['LINEDEFS'], _LINE)
  sector_of = np.frombuffer(lumps['SIDEDEFS'], _SIDE)['sector'].astype(int)
  sectors = np.frombuffer(lumps['SECTORS'], _SECTOR)
  # A missing side has sector -1.
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
  """Removes moving objects, sprites and darkness from a level."""
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
  # Grates between sectors are partly transparent: their depth is ambiguous.
  sides['middle'][passable] = b'-'
  # Without a texture on a step, the engine would show what is behind it.
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
  """Returns scripts 1 (x, y, z, angle) and 2 (pitch) that place the player.

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
  # Number, offset and argument count of each script; then no strings.
  scripts = [1, 8, 4, 2, 8 + 4 * len(first), 1]
  directory = struct.pack('<8i', 2, *scripts, 0)
  return b'ACS\0' + struct.pack('<i', 8 + len(body)) + body + directory


def write_patch(path: str, lumps: dict[str, bytes]) -> None:
  """Writes the WAD that replaces a level by its frozen version."""
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


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def crossings(
  level: Level, origin: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Finds the lines that rays in the plane of the map cross, nearest first.

  Args:
    level: The level.
    origin: [2] origin of all rays.
    directions: [K, 2] directions, whose lengths are the units of distances.

  Returns:
    distance, line, near sector and far sector, each [K, M], padded with
    infinity, 0, -1 and -1.
  """
  start = level.start - origin
  # A ray hits a line ahead of it whose ends are on different sides of the ray.
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
    (INFINITY, distance),
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
  """Returns the z-depth of the level along rays, in units of `rays`.

  Follows each ray from sector to sector through the lines between them, since
  Doom levels consist of walls, floors and ceilings only. The lines that a ray
  crosses come from the nearest of `columns` vertical planes; distances are
  exact for the ray itself.

  Args:
    level: The level.
    origin: [3] origin of all rays, in map units.
    rays: [P, 3] directions, less than a right angle apart.
    columns: Number of planes.

  Returns:
    float64 [P]; 0 for the sky and outside the level.
  """
  forward = rays[:, :2].mean(0)
  forward /= np.linalg.norm(forward)
  ahead = rays[:, :2] @ forward
  aside = _cross(rays[:, :2], forward) / ahead
  planes = np.linspace(aside.min(), aside.max() + 1e-9, columns)
  right = np.array([forward[1], -forward[0]])
  table = crossings(level, origin[:2], forward + planes[:, None] * right)
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
      to_plane = np.where(m == 0, INFINITY, (plane - origin[2]) / m)
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
    # Use the distance of the ray instead of its column's. They differ much only
    # for walls seen edge-on, where the column's is more reliable.
    exact = _cross(level.start[chosen] - origin[:2], level.edge[chosen])
    with np.errstate(divide='ignore', invalid='ignore'):
      exact = exact / _cross(plan[todo[hit]], level.edge[chosen])
    close = np.abs(exact - end[hit]) < 0.1 * end[hit]
    out[todo[hit]] = np.where(close, exact, end[hit])
    todo = todo[~hits_plane & ~wall]
  return out / ahead


def sector_of(level: Level, points: np.ndarray) -> np.ndarray:
  """Returns the sector of each of `points` [N, 2], -1 outside the level."""
  # An unusual direction, so that the ray is not parallel to a wall.
  direction = np.array([[0.7531, 0.6579]])
  return np.array(
    [crossings(level, point, direction)[2][0, 0] for point in points], int
  )


def clearance(level: Level, points: np.ndarray) -> np.ndarray:
  """Returns the distances from [N, 3] to the nearest lines that are not open.

  A line is open at heights where a camera fits between the floors and ceilings
  of both its sectors.
  """
  offset = points[:, None, :2] - level.start
  length = np.maximum((level.edge**2).sum(-1), 1e-9)
  along = ((offset * level.edge).sum(-1) / length).clip(0, 1)
  away = np.linalg.norm(offset - along[..., None] * level.edge, axis=-1)
  floor = np.maximum(level.floor[level.front], level.floor[level.back])
  ceiling = np.minimum(level.ceiling[level.front], level.ceiling[level.back])
  z = points[:, 2:]
  passes = (level.back >= 0) & (z > floor + 12) & (z < ceiling - 8)
  return np.where(passes, INFINITY, away).min(1)


def rotation_of(yaw: float, pitch: float, roll: float) -> np.ndarray:
  """Returns the [3, 3] OpenCV world-to-camera rotation of angles in radians.

  World axes are Doom's: x east, y north, z up; yaw is anticlockwise from east.
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


def pixel_rays(size: int, subsamples: int = 1) -> np.ndarray:
  """Returns [size * subsamples, size * subsamples, 3] rays with z = 1."""
  count = size * subsamples
  at = (np.arange(count) + 0.5) / count * 2 - 1
  at = at * math.tan(math.radians(FIELD_OF_VIEW) / 2)
  x, y = np.meshgrid(at, at)
  return np.stack([x, y, np.ones_like(x)], -1)
