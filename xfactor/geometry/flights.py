"""Camera paths relative to the first view: orbit, dolly, pan and others.

Every path starts at the reference camera, sways to both sides or circles, and
returns to it. Poses are from the reference's camera to the moved one (OpenCV
axes: x right, y down, z ahead).
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from xfactor.geometry import cameras

Phase = Float[np.ndarray, ' n']
_DOWN = np.array([0.0, 1.0, 0.0])


def _turn(axis: int, sign: int) -> Callable[..., np.ndarray]:
  """Returns a path that turns about one axis of the camera."""

  def path(phase: Phase, amount: float, distance: float) -> np.ndarray:
    del distance
    angles = np.zeros((len(phase), 3))
    angles[:, axis] = sign * np.radians(amount) * np.sin(phase)
    turns = Rotation.from_rotvec(angles).as_matrix()
    return np.concatenate([turns, np.zeros((len(phase), 3, 1))], 2)

  return path


def _move(axis: int, sign: int) -> Callable[..., np.ndarray]:
  """Returns a path that moves along one axis of the camera."""

  def path(phase: Phase, amount: float, distance: float) -> np.ndarray:
    del distance
    poses = np.tile(np.eye(3, 4), (len(phase), 1, 1))
    poses[:, axis, 3] = -sign * amount * np.sin(phase)
    return poses

  return path


def _orbit(phase: Phase, amount: float, distance: float) -> np.ndarray:
  """Swings around the point at `distance` ahead, looking at it."""
  angle = np.radians(amount) * np.sin(phase)
  eyes = np.stack([np.sin(angle), 0 * angle, 1 - np.cos(angle)], -1) * distance
  return _looking(eyes, distance)


def _spiral(phase: Phase, amount: float, distance: float) -> np.ndarray:
  """Circles and bobs ahead and back, looking at the point at `distance`."""
  grown = amount * np.sin(phase / 2)  # Starts and ends at the reference.
  eyes = np.stack(
    [
      grown * np.cos(2 * phase),
      grown * np.sin(2 * phase),
      amount / 2 * np.sin(phase),
    ],
    -1,
  )
  return _looking(eyes, distance)


def _looking(eyes: np.ndarray, distance: float) -> np.ndarray:
  target = np.broadcast_to([0.0, 0.0, distance], eyes.shape)
  return cameras.look_at(eyes, target, -_DOWN)


# Name: path, and whether its amount is in degrees.
FLIGHTS: dict[str, tuple[Callable[..., np.ndarray], bool]] = {
  'pan': (_turn(1, -1), True),
  'tilt': (_turn(0, -1), True),
  'roll': (_turn(2, 1), True),
  'orbit': (_orbit, True),
  'slide': (_move(0, 1), False),
  'rise': (_move(1, -1), False),
  'dolly': (_move(2, 1), False),
  'spiral': (_spiral, False),
}


def fly(
  name: str, frames: int, amount: float, distance: float
) -> Float[np.ndarray, 'n 3 4']:
  """Returns the cameras of a path.

  Args:
    name: Key of `FLIGHTS`.
    frames: Number of frames; the last one is a step before the first.
    amount: Largest turn in degrees, or largest move.
    distance: Distance ahead of the point that `orbit` and `spiral` look at.
  """
  phase = 2 * np.pi * np.arange(frames) / frames
  return FLIGHTS[name][0](phase, amount, distance)
