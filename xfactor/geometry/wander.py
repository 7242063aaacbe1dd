"""Camera paths that wander in chosen degrees of freedom.

Speeds are smooth random functions of time, so the distance of two frames grows
with the number of frames between them: a curriculum of windows is a curriculum
of motions. All degrees of freedom wander independently.

z points up; lengths are in world units, angles in radians.
"""

import dataclasses
import math
from collections.abc import Collection

import numpy as np
from jaxtyping import Float
from scipy import ndimage

# Degrees of freedom: turns about the vertical, the camera's right axis and its
# view direction; moves to its right, up and forwards.
FREEDOMS = ('pan', 'tilt', 'roll', 'slide', 'rise', 'push')

_MEMORY = 3.0  # Frames over which speeds are smoothed.
_MAX_TILT, _MAX_ROLL = math.radians(20), math.radians(15)


@dataclasses.dataclass(frozen=True)
class Path:
  """A camera path of N frames.

  Attributes:
    eyes: float64 [N, 3], camera positions.
    yaw: float64 [N], anticlockwise from the x axis.
    pitch: float64 [N], positive up.
    roll: float64 [N], positive clockwise.
  """

  eyes: Float[np.ndarray, 'n 3']
  yaw: Float[np.ndarray, ' n']
  pitch: Float[np.ndarray, ' n']
  roll: Float[np.ndarray, ' n']

  def world_to_camera(self) -> Float[np.ndarray, 'n 3 4']:
    """Returns OpenCV poses."""
    rotation = rotations(self.yaw, self.pitch, self.roll)
    translation = -np.einsum('nij,nj->ni', rotation, self.eyes)
    return np.concatenate([rotation, translation[..., None]], -1)


def parse(kind: str) -> tuple[str, ...] | None:
  """Parses a kind of path such as 'pan+tilt'.

  Returns:
    Degrees of freedom in the order of `FREEDOMS`, or None if a word is unknown.
  """
  words = kind.split('+')
  if not set(words) <= set(FREEDOMS):
    return None
  return tuple(word for word in FREEDOMS if word in words)


def wander(
  rng: np.random.Generator,
  frames: int,
  freedoms: Collection[str],
  *,
  eye: Float[np.ndarray, '3'],
  yaw: float,
  turn: float,
  move: float,
) -> Path:
  """Samples a path.

  Tilt and roll swing within 20 and 15 degrees of level; pan and the position
  are not bounded.

  Args:
    rng: Random number generator; the samples do not depend on `freedoms`.
    frames: Number of frames.
    freedoms: Degrees of freedom of `FREEDOMS` that wander; the others rest.
    eye: Start of the path.
    yaw: Initial viewing direction.
    turn: Root mean square speed of pan, tilt and roll, radians per frame.
    move: Root mean square speed of slide, rise and push, units per frame.

  Raises:
    ValueError: If a degree of freedom is unknown.
  """
  for name in freedoms:
    if name not in FREEDOMS:
      raise ValueError(
        f'{name!r} is not a degree of freedom; '
        f'choose from {", ".join(FREEDOMS)}'
      )
  speeds = _smooth_noise(rng, frames, len(FREEDOMS))
  level = rng.uniform(-1, 1, 2) * [math.radians(8), math.radians(4)]
  pan, tilt, roll, slide, rise, push = (
    speeds[:, i] * (name in freedoms) for i, name in enumerate(FREEDOMS)
  )
  yaw = yaw + turn * np.cumsum(pan)
  pitch = _swing(turn * np.cumsum(tilt), level[0], _MAX_TILT)
  roll = _swing(
    turn * np.cumsum(roll), level[1] * ('roll' in freedoms), _MAX_ROLL
  )
  ahead = np.stack([np.cos(yaw), np.sin(yaw), np.zeros(frames)], -1)
  right = np.stack([np.sin(yaw), -np.cos(yaw), np.zeros(frames)], -1)
  up = np.array([0.0, 0.0, 1.0])
  steps = push[:, None] * ahead + slide[:, None] * right
  steps = move * (steps + rise[:, None] * up)
  return Path(eye + np.cumsum(steps, 0), yaw, pitch, roll)


def _smooth_noise(rng: np.random.Generator, frames: int, count: int):
  """Returns smooth noise [frames, count], unit variance, zero at the start."""
  margin = math.ceil(4 * _MEMORY)
  white = rng.normal(size=(count, frames + 2 * margin)).T
  smooth = ndimage.gaussian_filter1d(white, _MEMORY, axis=0)
  # Undoes the reduction of the variance by the Gaussian filter.
  smooth *= math.sqrt(2 * math.sqrt(math.pi) * _MEMORY)
  smooth = smooth[margin:-margin]
  smooth[0] = 0
  return smooth


def _swing(angle: np.ndarray, start: float, limit: float) -> np.ndarray:
  """Folds a wandering angle into (-limit, limit) without a kink."""
  return limit * np.sin(angle / limit + math.asin(start / limit))


def rotations(
  yaw: Float[np.ndarray, '*b'],
  pitch: Float[np.ndarray, '*b'],
  roll: Float[np.ndarray, '*b'],
) -> Float[np.ndarray, '*b 3 3']:
  """Returns world-to-camera rotations (OpenCV) from angles as in `Path`."""
  yaw, pitch, roll = map(np.asarray, (yaw, pitch, roll))
  forward = np.stack(
    [np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)],
    -1,
  )
  right = np.stack([np.sin(yaw), -np.cos(yaw), np.zeros_like(yaw)], -1)
  down = np.cross(forward, right)
  c, s = np.cos(roll)[..., None], np.sin(roll)[..., None]
  return np.stack([c * right + s * down, c * down - s * right, forward], -2)


def angles(
  rotation: Float[np.ndarray, '*b 3 3'],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns yaw, pitch and roll of rotations; the inverse of `rotations`."""
  forward = rotation[..., 2, :]
  yaw = np.arctan2(forward[..., 1], forward[..., 0])
  pitch = np.arcsin(np.clip(forward[..., 2], -1, 1))
  level = np.stack([np.sin(yaw), -np.cos(yaw), np.zeros_like(yaw)], -1)
  down = np.cross(forward, level)
  across = rotation[..., 0, :]
  roll = np.arctan2((across * down).sum(-1), (across * level).sum(-1))
  return yaw, pitch, roll
