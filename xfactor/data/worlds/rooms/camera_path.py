"""Samples camera paths that stay clear of walls and furniture."""

from collections.abc import Sequence

import numpy as np

from xfactor.data.worlds.raycaster import render
from xfactor.data.worlds.raycaster import scene as scene_lib
from xfactor.data.worlds.rooms import textures
from xfactor.geometry import cameras, trajectories

# Smallest distance in metres between the camera and any surface.
MARGIN = 0.35


def _score(scene, eyes, targets, half_view: float) -> float:
  """Scores the view along a path, by 25 rays at each of four times.

  Rays that hit objects at a distance score, rays that hit near surfaces cost.
  """
  moments = np.linspace(0, len(eyes) - 1, 4).astype(int)
  pose = cameras.look_at(eyes[moments], targets[moments], _UP)
  focal = 0.5 / half_view
  intrinsics = np.tile([focal, focal, 0.5, 0.5], (4, 1))
  origins, rays = cameras.pixel_rays(intrinsics, pose, 5, 5)
  t, group = render.first_seen(
    scene, origins.reshape(-1, 3), rays.reshape(-1, 3)
  )
  objects = np.mean((group > 0) & (t > 0.6))
  distinct = len(np.unique(group))
  too_near = np.mean(t < 1.1)
  return float(0.7 * objects + 0.05 * distinct - 2 * too_near)


_UP = np.array([0.0, 0.0, 1.0])


def choose_path(
  scene: scene_lib.Scene,
  focuses: list[np.ndarray],
  rng: textures.Rng,
  half_view: float,
  kinds: Sequence[str],
) -> trajectories.Path:
  """Samples a path with a good view that keeps `MARGIN` from all surfaces.

  Args:
    scene: Scene of the path.
    focuses: Points of interest to look at.
    rng: Random number generator.
    half_view: Tangent of half the field of view.
    kinds: Kinds of paths; tried in random order.
  """
  kinds = list(rng.permutation(list(kinds)))
  low = scene.centre[0] - scene.half[0] + MARGIN
  high = scene.centre[0] + scene.half[0] - MARGIN
  starts = rng.uniform(low, high, (512, 3))
  starts[:, 2] = rng.uniform(0.7, min(1.9, high[2]), 512)
  free = render.clearance(scene, starts)
  safest, starts = starts[free.argmax()], starts[free > MARGIN + 0.1]
  centre = np.array([0.0, 0.0, 1.0])
  times = np.linspace(0, 1, 40)
  # Try each kind several times before the next one, so that kinds that fit
  # anywhere do not dominate.
  for kind in kinds if len(starts) else ():
    best, best_score = None, 0.5
    for attempt in range(14):
      start = starts[rng.integers(len(starts))]
      focus = centre
      if focuses:
        focus = focuses[rng.integers(len(focuses))] + rng.normal(size=3) * 0.15
      away = np.linalg.norm((focus - start)[:2])
      reach = rng.uniform(1.4, 3.6) * (1 - attempt / 28)
      if not 1.2 < away < 4.5:
        continue
      path = trajectories.random_path(kind, rng, start, focus, reach)
      eyes, targets = path(times)
      if render.clearance(scene, eyes).min() < MARGIN:
        continue
      score = _score(scene, eyes, targets, half_view)
      if score > best_score:
        best, best_score = path, score
      if score > 0.85:
        break
    if best is not None:
      return best
  return _safe_path(scene, safest, focuses[0] if focuses else centre)


def _safe_path(scene, start, focus) -> trajectories.Path:
  """Returns a short straight path around the point with the most room."""
  away = (focus - start) * [1, 1, 0]
  side = np.cross(away / np.linalg.norm(away), _UP)
  free = render.clearance(scene, start[None])[0]
  half = side * max(0.0, free - MARGIN)
  return lambda u: (
    trajectories.line(u, start - half, start + half),
    np.tile(focus, (len(u), 1)),
  )
