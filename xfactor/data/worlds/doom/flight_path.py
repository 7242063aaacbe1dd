"""Camera paths through Doom levels."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from xfactor.data.worlds.doom import level as level_lib
from xfactor.errors import UserError
from xfactor.geometry import wander

VIEW_HEIGHT = 41.0  # Height of the camera above the player's feet.
HEAD_ROOM = 15.0  # Height of the player above the camera.
_MAX_TILT = (8.0, 4.0)  # Largest pitch and roll in degrees.
_CLEARANCE = 24.0  # Map units between the camera of a path and any wall.
MIN_CLEARANCE = 12.0  # The same for other cameras; closer views show little.


@dataclasses.dataclass(frozen=True)
class Path:
  """Camera path of N frames.

  Attributes:
    position: [N, 3] camera positions in map units.
    yaw: [N] radians, anticlockwise from east.
    pitch: [N] radians, positive up.
    roll: [N] radians, positive clockwise.
  """

  position: np.ndarray
  yaw: np.ndarray
  pitch: np.ndarray
  roll: np.ndarray


_ATTEMPTS = 4000


def plan_path(
  level: level_lib.Level, rng: np.random.Generator, frames: int
) -> Path:
  """Samples a smooth path that stays clear of walls and has a good view.

  Raises:
    UserError: If the level has no room for a path.
  """
  return _first_path(
    level, lambda scale: _sample_path(level, rng, frames, scale)
  )


def plan_wander(
  level: level_lib.Level,
  rng: np.random.Generator,
  frames: int,
  freedoms: tuple[str, ...],
  *,
  turn: float,
  move: float,
) -> Path:
  """Samples a wandering path that stays clear of walls and has a good view.

  Args:
    level: The level.
    rng: Random number generator.
    frames: Number of frames of the path.
    freedoms: Degrees of freedom that vary, from `wander.FREEDOMS`.
    turn: Radians per frame, see `wander.wander`.
    move: Map units per frame; reduced if the level has no room.

  Raises:
    UserError: If the level has no room for a path.
  """
  return _first_path(
    level,
    lambda scale: _sample_wander(
      level, rng, frames, freedoms, turn, move * scale
    ),
    max(frames // 4, 5),
  )


def _first_path(
  level: level_lib.Level, draw: Callable[[float], Path | None], *moments: int
) -> Path:
  """Returns the first good path sampled; each attempt is slightly shorter."""
  for attempt in range(_ATTEMPTS):
    # Cramped levels get shorter paths rather than none.
    path = draw(0.999**attempt)
    if path is not None and _shows_something(level, path, *moments):
      return path
  raise UserError(
    'no camera path fits into this level; use another seed, or remove the '
    "level from vizdoom's lists"
  )


def _sample_wander(
  level: level_lib.Level,
  rng: np.random.Generator,
  frames: int,
  freedoms: tuple[str, ...],
  turn: float,
  move: float,
) -> Path | None:
  """Samples a path; None if it leaves the level or comes too near a wall."""
  start = rng.uniform(level.start.min(0), level.start.max(0))
  sector = level_lib.sector_of(level, start[None])[0]
  if sector < 0:
    return None
  floor = level.floor[sector]
  bottom = floor + VIEW_HEIGHT
  top = min(level.ceiling[sector] - HEAD_ROOM, floor + 200)
  if top < bottom:
    return None
  eye = np.append(start, rng.uniform(bottom, top))
  if level_lib.clearance(level, eye[None])[0] < _CLEARANCE:
    return None
  yaw = _open_bearing(level, rng, start)
  drawn = wander.wander(
    rng, frames, freedoms, eye=eye, yaw=yaw, turn=turn, move=move
  )
  steps = np.linalg.norm(np.diff(drawn.eyes, axis=0), axis=1)
  # A longer step could cross a wall although both ends are clear of it.
  if (steps >= 2 * _CLEARANCE).any():
    return None
  if level_lib.clearance(level, drawn.eyes).min() < _CLEARANCE:
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


def _sample_path(
  level: level_lib.Level, rng: np.random.Generator, frames: int, scale: float
) -> Path | None:
  """Samples a path; None if it leaves the level or comes too near a wall."""
  low, high = level.start.min(0), level.start.max(0)
  start = rng.uniform(low, high)
  sector = level_lib.sector_of(level, start[None])[0]
  if sector < 0 or level.ceiling[sector] - level.floor[sector] < 72:
    return None
  u = np.linspace(0, 1, max(frames, 64))
  length = rng.uniform(160, 480) * scale
  bearing = _open_bearing(level, rng, start)
  bearing = bearing + _wave(rng, u, math.radians(25))
  steps = np.stack([np.cos(bearing), np.sin(bearing)], 1)
  plan = start + np.cumsum(steps, 0) * length / (len(u) - 1)
  sectors = level_lib.sector_of(level, plan)
  if (sectors < 0).any():
    return None
  floor, ceiling = level.floor[sectors], level.ceiling[sectors]
  if rng.uniform() < 0.6:  # A walk at eye height above the smoothed floor.
    width = len(u) // 6
    kernel = np.hanning(2 * width + 1)
    padded = np.pad(floor, width, mode='edge')
    z = np.convolve(padded, kernel / kernel.sum(), 'valid') + _wave(rng, u, 4)
    z = z + VIEW_HEIGHT + rng.uniform(4, 24)
  else:  # A flight.
    bottom = floor[0] + VIEW_HEIGHT
    top = min(ceiling[0] - 16, floor[0] + 200)
    if top < bottom:
      return None
    z = rng.uniform(bottom, top) + _wave(rng, u, 24)
  position = np.concatenate([plan, z[:, None]], 1)
  if not _has_room(level, position):
    return None
  if level_lib.clearance(level, position).min() < _CLEARANCE:
    return None
  # Mostly look ahead, often sideways, sometimes back.
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
  # Interpolated frames between two valid points may be inside a step.
  return path if _has_room(level, path.position) else None


def _has_room(level: level_lib.Level, position: np.ndarray) -> bool:
  """Returns whether the engine can place a player at all of [N, 3]."""
  return bool(room(level, position).all())


def room(
  level: level_lib.Level, position: np.ndarray, slack: float = 0.0
) -> np.ndarray:
  """Returns whether a player fits, up to `slack`, at each of [N, 3]."""
  sectors = level_lib.sector_of(level, position[:, :2])
  feet, head = position[:, 2] - VIEW_HEIGHT, position[:, 2] + HEAD_ROOM
  low, high = level.floor[sectors], level.ceiling[sectors]
  return (sectors >= 0) & (feet >= low - slack) & (head <= high + slack)


def _open_bearing(
  level: level_lib.Level, rng: np.random.Generator, start: np.ndarray
) -> float:
  """Samples a bearing, preferring those with distant walls."""
  bearings = np.arange(16) * np.pi / 8 + rng.uniform(0, np.pi / 8)
  directions = np.stack([np.cos(bearings), np.sin(bearings)], 1)
  distance, line, _, far = level_lib.crossings(level, start, directions)
  # Steps higher than 24 units block walks and most flights.
  floor = np.where(far < 0, level_lib.INFINITY, level.floor[far])
  blocked = floor > level.floor[level_lib.sector_of(level, start[None])[0]] + 24
  room = np.where(blocked, distance, level_lib.INFINITY).min(1).clip(1, 1024)
  return float(rng.choice(bearings, p=room**2 / (room**2).sum()))


def _shows_something(
  level: level_lib.Level, path: Path, views: int = 5
) -> bool:
  """Returns whether views along the path show neither only walls nor sky."""
  rays = level_lib.pixel_rays(12).reshape(-1, 3)
  for i in np.linspace(0, len(path.yaw) - 1, views).astype(int):
    rotation = level_lib.rotation_of(path.yaw[i], path.pitch[i], path.roll[i])
    depth = level_lib.cast(level, path.position[i], rays @ rotation, 24)
    seen = depth[depth > 0]
    if len(seen) < 0.6 * len(depth):
      return False
    if (seen < 56).mean() > 0.1 or not 128 < np.median(seen) < 1024:
      return False
  return True
