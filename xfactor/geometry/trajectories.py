"""Camera paths: positions and targets as functions of time.

A path maps times u in 0..1, float [N], to eyes and targets, each [N, 3], in
metres with z up. `cameras.look_at` turns them into poses.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Points = Float[np.ndarray, 'n 3']
Times = Float[np.ndarray, 'n']
Vector = Float[np.ndarray, '3']
Path = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

_UP = np.array([0.0, 0.0, 1.0])


def line(u: Times, start: Vector, end: Vector) -> Points:
  """Returns points from `start` (u = 0) to `end` (u = 1) at constant speed."""
  return start + u[:, None] * (end - start)


def arc(u: Times, start: Vector, centre: Vector, sweep: float) -> Points:
  """Turns `start` about the vertical through `centre` by `sweep` radians."""
  angle = sweep * u
  x, y, z = start - centre
  turned = [
    x * np.cos(angle) - y * np.sin(angle),
    x * np.sin(angle) + y * np.cos(angle),
    np.full_like(u, z),
  ]
  return centre + np.stack(turned, axis=-1)


def spline(u: Times, points: Float[np.ndarray, 'k 3']) -> Points:
  """Returns a uniform Catmull-Rom curve through at least two points."""
  # Extrapolated ends give the first and the last piece a natural tangent.
  first, last = 2 * points[0] - points[1], 2 * points[-1] - points[-2]
  p = np.concatenate([first[None], points, last[None]])
  pieces = len(points) - 1
  i = np.clip(np.floor(u * pieces).astype(int), 0, pieces - 1)
  t = (u * pieces - i)[:, None]
  a, b, c, d = p[i], p[i + 1], p[i + 2], p[i + 3]
  return b + 0.5 * t * (
    c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a))
  )


def sway(u: Times, rng: np.random.Generator, amplitude: float) -> Points:
  """Returns smooth random offsets of about `amplitude`, like a shaking hand."""
  cycles = rng.uniform(0.5, 3.5, (4, 1, 3))
  phase = rng.uniform(0, 2 * np.pi, (4, 1, 3))
  waves = np.sin(2 * np.pi * cycles * u[:, None] + phase) / cycles
  return amplitude * waves.sum(0)


def _orbit(rng, start, focus, reach):
  radius = np.linalg.norm((start - focus)[:2])
  sweep = rng.choice([-1, 1]) * min(reach / radius, 2.5)
  return lambda u: (arc(u, start, focus, sweep), np.tile(focus, (len(u), 1)))


def _arc(rng, start, focus, reach):
  """Swings around the focus and approaches it while the gaze drifts."""
  radius = np.linalg.norm((start - focus)[:2])
  sweep = rng.choice([-1, 1]) * min(0.8 * reach / radius, 2.0)
  closing = rng.uniform(0.1, 0.35)
  drift = rng.normal(size=3) * [0.3, 0.3, 0.1]

  def path(u):
    eyes = arc(u, start, focus, sweep)
    eyes = eyes + closing * u[:, None] * (focus - eyes) * [1, 1, 0]
    return eyes, line(u, focus - drift, focus + drift)

  return path


def _walk(rng, start, focus, reach):
  """Moves forward along the line of sight, weaving slightly."""
  ahead = (focus - start) * [1, 1, 0]
  ahead = ahead / np.linalg.norm(ahead)
  side = np.cross(ahead, _UP) * rng.choice([-1, 1]) * rng.uniform(0.05, 0.2)
  distant = start + ahead * (reach + 2.5)
  distant = distant + side * 2 + _UP * (focus - start)[2]

  def path(u):
    weave = np.sin(np.pi * 1.5 * u)[:, None] * side
    eyes = line(u, start, start + ahead * reach) + weave
    return eyes, np.tile(distant, (len(u), 1))

  return path


def _dolly(rng, start, focus, reach):
  """Moves sideways; the gaze keeps its direction or follows more slowly."""
  side = np.cross(focus - start, _UP)
  side = side / np.linalg.norm(side) * rng.choice([-1, 1]) * reach
  follow = rng.uniform(0.5, 1.0)

  def path(u):
    move = (u[:, None] - 0.5) * side
    return start + move, focus + follow * move

  return path


def _look_around(rng, start, focus, reach):
  """Pans over 50 to 100 degrees while moving on a small circle."""
  turn = rng.choice([-1, 1]) * rng.uniform(0.9, 1.7)
  ahead = (focus - start) * [1, 1, 0]
  # The circle is behind the camera, as if it were held at arm's length.
  hub = start - ahead / np.linalg.norm(ahead) * reach / abs(turn) * 0.7

  def path(u):
    eyes = arc(u - 0.5, start, hub, turn)
    gaze = arc(u - 0.5, focus, hub, turn)
    return eyes, gaze

  return path


def _fly(rng, start, focus, reach):
  """Follows a spline through four points in a slab around the start."""
  steps = rng.normal(size=(3, 3)) * [1, 1, 0.3]
  steps = steps / np.linalg.norm(steps, axis=-1, keepdims=True)
  # Later steps include the first one, so that the curve does not fold back.
  steps[1:] = 0.6 * steps[1:] + 0.6 * steps[0]
  steps = np.concatenate([np.zeros((1, 3)), steps])
  knots = start + steps.cumsum(0) * reach / 3
  gaze = focus + rng.normal(size=(3, 3)) * [0.4, 0.4, 0.15]
  return lambda u: (spline(u, knots), spline(u, gaze))


def _crane(rng, start, focus, reach):
  """Rises or sinks past the focus while drifting sideways or backwards."""
  away = (start - focus) * [1, 1, 0]
  away = away / np.linalg.norm(away)
  side = np.cross(away, _UP) * rng.uniform(-0.6, 0.6)
  rise = _UP * rng.choice([-1, 1]) * min(reach, 1.2)
  half = (rise + (away * rng.uniform(-0.3, 0.5) + side) * reach) / 2
  return lambda u: (
    line(u, start - half, start + half),
    np.tile(focus, (len(u), 1)),
  )


def _handheld(rng, start, focus, reach):
  """Moves sideways and forward with a shaking hand and a wandering gaze."""
  ahead = (focus - start) * [1, 1, 0]
  ahead = ahead / np.linalg.norm(ahead)
  side = np.cross(ahead, _UP) * rng.uniform(-1, 1)
  end = start + (ahead * rng.uniform(0.2, 0.6) + side) * reach * 0.7
  # Generators with fixed seeds, so that every call of a path gives the same.
  eye_seed, gaze_seed = rng.integers(2**31, size=2)

  def path(u):
    eyes = line(u, start, end)
    eyes = eyes + sway(u, np.random.default_rng(eye_seed), 0.04)
    return eyes, focus + sway(u, np.random.default_rng(gaze_seed), 0.12)

  return path


KINDS: dict[str, Callable[..., Path]] = {
  'orbit': _orbit,
  'arc': _arc,
  'walk': _walk,
  'dolly': _dolly,
  'look_around': _look_around,
  'fly': _fly,
  'crane': _crane,
  'handheld': _handheld,
}


def random_path(
  kind: str,
  rng: np.random.Generator,
  start: Vector,
  focus: Vector,
  reach: float,
) -> Path:
  """Samples a smooth path of a kind.

  Args:
    kind: Key of `KINDS`.
    rng: Random number generator; advanced by the call.
    start: Position of the eye at the path's start or in its middle.
    focus: Point to look at, at some horizontal distance from `start`.
    reach: Approximate length of the path.

  Returns:
    A pure function of times in 0..1.
  """
  return KINDS[kind](rng, start, focus, reach)
