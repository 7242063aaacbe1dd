"""Camera motions around a scene, as in SRT's public render.py.

A motion maps times t, float [n] from 0 to 1, and the position of the first
camera to the cameras' positions, the points that they look at, and factors of
their focal length. The scene's centre is the origin and z points up.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from xfactor.geometry import cameras

Times = Float[np.ndarray, ' n']
Vector = Float[np.ndarray, '3']
Points = Float[np.ndarray, 'n 3']
Motion = Callable[..., tuple[Points, Points, Times]]

_UP = np.array([0.0, 0.0, 1.0])
_FADE = 0.2  # Fraction of the time for speeding up, and for slowing down.
_SENSOR_WIDTH, _FOCAL_LENGTH = 0.032, 0.035


def rotate(t: Times, start: Vector) -> tuple[Points, Points, Times]:
  """Turns once about the vertical through the origin, looking at it."""
  still = np.tile(start, (len(t), 1))
  return _turn(still, 2 * np.pi * t), 0 * still, np.ones_like(t)


def zoom(t: Times, start: Vector) -> tuple[Points, Points, Times]:
  """Stands still while the sensor shrinks to a fifth."""
  still = np.tile(start, (len(t), 1))
  return still, 0 * still, 1 / _line(1, 1 / 5, t)


def closeup(
  t: Times, start: Vector, beyond: float = 3.0
) -> tuple[Points, Points, Times]:
  """Moves down towards the origin while the gaze moves past it.

  Args:
    t: Times.
    start: Position of the first camera.
    beyond: End of the gaze, in units of the first camera's distance from the
      origin.
  """
  level = start * [1, 1, 0]
  distance, height = _line(1, 0.2, t), _line(1, 0.1, (1.5 - 0.5 * t) * t)
  eyes = distance[:, None] * level + height[:, None] * (start - level)
  return eyes, t[:, None] * (1 - beyond) * level, np.ones_like(t)


def rotate_and_closeup(t: Times, start: Vector) -> tuple[Points, Points, Times]:
  """Turns once during the first half of a `closeup` and its reverse."""
  eyes, targets, factor = closeup(
    (1 - np.cos(2 * np.pi * t)) / 4, start, beyond=1.5
  )
  angle = 2 * np.pi * t
  return _turn(eyes, angle), _turn(targets, angle), factor


def eyeroll(t: Times, start: Vector) -> tuple[Points, Points, Times]:
  """Stands still and looks along a circle of radius 1.5 around the origin."""
  first = np.tile([1.5, 0.0, 0.0], (len(t), 1))
  still = np.tile(start, (len(t), 1))
  return still, _turn(first, -2 * np.pi * t), np.ones_like(t)


MOTIONS: dict[str, Motion] = {
  f.__name__: f for f in (rotate, zoom, closeup, rotate_and_closeup, eyeroll)
}


def fade(t: Times) -> Times:
  """Returns times with constant acceleration at the start and the end."""
  speed = 1 / (1 - _FADE)
  ends = speed / _FADE / 2 * np.minimum(t, 1 - t) ** 2
  return np.where(
    t <= _FADE,
    ends,
    np.where(t <= 1 - _FADE, speed * (t - _FADE / 2), 1 - ends),
  )


def frame_times(name: str, frames: int, *, faded: bool = False) -> Times:
  """Returns the times of a motion's frames, without the repeated first frame.

  A zoom has no fade, as in the public code.
  """
  t = np.arange(frames) / frames
  return fade(t) if faded and name != 'zoom' else t


def public_lens(height: int, width: int) -> Float[np.ndarray, '4']:
  """Returns the normalised intrinsics of the public code, 0.035 / 0.032."""
  fx = _FOCAL_LENGTH / _SENSOR_WIDTH
  return np.array([fx, fx * width / height, 0.5, 0.5])


def fly(
  name: str, t: Times, start: Vector, lens: Float[np.ndarray, '4']
) -> tuple[Float[np.ndarray, 'n 4'], Float[np.ndarray, 'n 3 4']]:
  """Returns the cameras of a motion at times t.

  Args:
    name: Key of `MOTIONS`.
    t: Times, see `frame_times`.
    start: Position of the first camera, not above or below the origin.
    lens: Normalised intrinsics at the start.

  Returns:
    Normalised intrinsics and world-to-camera poses.
  """
  eyes, targets, factor = MOTIONS[name](t, start)
  longer = np.stack([factor, factor, 1 + 0 * t, 1 + 0 * t], axis=-1)
  return longer * lens, cameras.look_at(eyes, targets, _UP)


def _line(start: float, end: float, t: Times) -> Times:
  return start + (end - start) * t


def _turn(points: Points, angle: Times) -> Points:
  """Turns points about the z axis, each by its angle in radians."""
  x, y, z = points.T
  sine, cosine = np.sin(angle), np.cos(angle)
  return np.stack([cosine * x - sine * y, sine * x + cosine * y, z], axis=-1)
