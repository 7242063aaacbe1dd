"""Refines a pose by direct image alignment."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from xfactor.evaluation.oracles.known_scene import localisation

try:
  import cv2
except ImportError:  # Optional; `Oracle` reports it.
  cv2 = None

# Settings of direct alignment: blurs coarse to fine, pixels per reference.
_SIGMAS = (3.0, 1.5, 0.75)
_EXTRA_BLURS = (0.0, 1.0, 2.0, 3.0)
_PIXELS = 1500
_STEPS = 12
_IN_VIEW = 0.1  # Smallest share of the pixels in view.
_SLACK = 0.01  # Largest accepted decrease of the correlation.


def align(
  grey: np.ndarray,
  references: Sequence[localisation.Reference],
  pose: np.ndarray,
  matrix: np.ndarray,
  size: float,
) -> tuple[np.ndarray, float]:
  """Returns the pose at which the references match the picture best.

  Args:
    grey: The picture.
    references: Frames nearby.
    pose: Initial pose; returned if no other pose fits better.
    matrix: Matrix of the picture's camera.
    size: Scale of the lengths above, which are for pictures of `SIDE` pixels.

  Returns:
    World-to-camera [3, 4], and the correlation of the picture with the
    references seen from there.
  """

  def layer(sigma: float, extra: float) -> '_Layer':
    return _layer(grey, references, matrix, sigma * size, extra * size)

  def fit(extra: float) -> float:
    return layer(_SIGMAS[-1], extra).correlation(pose)

  # Match the picture's blur, so that edges do not seem displaced.
  extra = max(_EXTRA_BLURS, key=fit)
  start = pose
  for sigma in _SIGMAS:
    pose = layer(sigma, extra).descend(pose)
  finest = layer(_SIGMAS[-1], extra)
  before, after = (finest.correlation(x) for x in (start, pose))
  # Keep the refined pose if in doubt: occlusions make small differences random.
  return (start, before) if after < before - _SLACK else (pose, after)


def _layer(
  grey: np.ndarray,
  references: Sequence[localisation.Reference],
  matrix: np.ndarray,
  sigma: float,
  extra: float,
) -> '_Layer':
  picture = localisation.blurred(grey, sigma)
  levels, points = [], []
  for reference in references:
    blurred = localisation.blurred(reference.grey, np.hypot(sigma, extra))
    slope = np.hypot(*np.gradient(blurred))
    # Flat regions have no information.
    order = np.argsort(np.where(reference.smooth, -slope, np.inf), axis=None)
    best = order[: min(_PIXELS, reference.smooth.sum())]
    levels.append(blurred.flat[best])
    points.append(reference.surface.reshape(-1, 3)[best])
  return _Layer(
    np.stack([picture, *np.gradient(picture)[::-1]], -1),
    np.concatenate(levels).astype(np.float64),
    np.concatenate(points),
    matrix,
  )


@dataclasses.dataclass(frozen=True)
class _Layer:
  """Direct alignment at one scale.

  Attributes:
    picture: float32 [h, w, 3], grey levels and their slopes in x and y.
    levels: [n], grey levels of the points.
    points: [n, 3] in the world.
    matrix: Matrix of the picture's camera.
  """

  picture: np.ndarray
  levels: np.ndarray
  points: np.ndarray
  matrix: np.ndarray

  def look(
    self, pose: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Returns which points are in view, their positions, and `picture` there.

    The first is bool [n], the others [m, 3], positions in the camera's axes.
    None if too few points are in view.
    """
    local, places = localisation.project(self.points, pose, self.matrix)
    height, width = self.picture.shape[:2]
    seen = ((places >= 0) & (places <= [width - 1, height - 1])).all(-1)
    if seen.sum() <= _IN_VIEW * len(seen):
      return None
    places = places[seen].astype(np.float32)
    there = cv2.remap(
      self.picture, places[:, :1], places[:, 1:], cv2.INTER_LINEAR
    )
    return seen, local[seen], there[:, 0].astype(np.float64)

  def correlation(self, pose: np.ndarray) -> float:
    """Correlation of the picture with the points' grey levels, else 0."""
    view = self.look(pose)
    if view is None:
      return 0.0
    seen, _, there = view
    a, b = (x - x.mean() for x in (there[:, 0], self.levels[seen]))
    return float(a @ b / (np.sqrt((a @ a) * (b @ b)) + 1e-12))

  def descend(self, pose: np.ndarray) -> np.ndarray:
    """Optimizes pose, gain and offset of the grey levels by Gauss-Newton."""
    fx, fy = np.diag(self.matrix)[:2]
    gain, offset = 1.0, 0.0
    for _ in range(_STEPS):
      view = self.look(pose)
      if view is None:
        break
      seen, local, there = view
      want = self.levels[seen]
      value, dx, dy = there.T
      x, y, z = local.T
      force = np.stack(
        [dx * fx / z, dy * fy / z, -(dx * fx * x + dy * fy * y) / z**2], -1
      )
      # By translation and rotation (applied from the left), gain and offset.
      jacobian = np.concatenate(
        [
          force,
          np.cross(local, force),
          -want[:, None],
          -np.ones((len(want), 1)),
        ],
        -1,
      )
      residual = value - gain * want - offset
      # Cauchy weights: occluded points are outliers.
      spread = 1.4826 * np.median(np.abs(residual)) + 1e-6
      weighted = jacobian / (1 + (residual / spread) ** 2)[:, None]
      normal = weighted.T @ jacobian
      normal += 1e-6 * np.diag(np.diag(normal)) + 1e-12 * np.eye(8)
      step = -np.linalg.solve(normal, weighted.T @ residual)
      turn = cv2.Rodrigues(step[3:6])[0]
      pose = np.concatenate(
        [turn @ pose[:, :3], (turn @ pose[:, 3] + step[:3])[:, None]], 1
      )
      gain, offset = gain + step[6], offset + step[7]
      if np.abs(step[:6]).max() < 1e-5:
        break
    return pose
