"""Camera paths that wander in chosen degrees of freedom.

Speeds are smooth random functions of time, so that two frames of a path are
further apart the more frames lie between them: a curriculum of windows is a
curriculum of motions. All degrees of freedom wander independently.

The world has z up; lengths are in its units. Angles are in radians.
"""

import dataclasses
import math
from collections.abc import Collection

import numpy as np
from jaxtyping import Float
from scipy import ndimage

# Degrees of freedom: turns about the vertical, about the camera's right and
# about its view direction; moves to its right, up and forwards.
FREEDOMS = ('pan', 'tilt', 'roll', 'slide', 'rise', 'push')

_MEMORY = 3.0  # Frames over which speeds are smoothed.
_MAX_TILT, _MAX_ROLL = math.radians(20), math.radians(15)


@dataclasses.dataclass(frozen=True)
class Path:
  """A camera path of N frames.

  Attributes:
    eyes: float64 [N, 3].
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
  """Returns the freedoms of a kind of path such as 'pan+tilt'.

  Returns:
    Them in the order of `FREEDOMS`, or None if another word is among them.
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
  """Draws a path.

  Tilt and roll swing within 20 and 15 degrees of level; pan and the position
  are not bounded.

  Args:
    rng: Source of the draw; what it gives does not depend on `freedoms`.
    frames: Frames of the path.
    freedoms: Degrees of freedom that wander, of `FREEDOMS`; the others rest.
    eye: Where the path starts.
    yaw: Where it looks at first.
    turn: Root mean square speed of pan, tilt and roll, radians a frame.
    move: Root mean square speed of slide, rise and push, units a frame.

  Raises:
    ValueError: If there is no such freedom.
  """
  for name in freedoms:
    if name not in FREEDOMS:
      raise ValueError(
        f'{name!r} is no degree of freedom; choose from {", ".join(FREEDOMS)}'
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
  """Smooth noise [frames, count] of unit variance and zero at the start."""
  margin = math.ceil(4 * _MEMORY)
  white = rng.normal(size=(count, frames + 2 * margin)).T
  smooth = ndimage.gaussian_filter1d(white, _MEMORY, axis=0)
  # The variance of white noise after a Gaussian filter.
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
  """World-to-camera rotations (OpenCV) of angles as of `Path`."""
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
  """Yaw, pitch and roll of world-to-camera rotations; inverts `rotations`."""
  forward = rotation[..., 2, :]
  yaw = np.arctan2(forward[..., 1], forward[..., 0])
  pitch = np.arcsin(np.clip(forward[..., 2], -1, 1))
  level = np.stack([np.sin(yaw), -np.cos(yaw), np.zeros_like(yaw)], -1)
  down = np.cross(forward, level)
  across = rotation[..., 0, :]
  roll = np.arctan2((across * down).sum(-1), (across * level).sum(-1))
  return yaw, pitch, roll
