"""Intersects rays with the primitives of a scene."""

import dataclasses

import numpy as np

from xfactor.data.worlds.raycaster import scene as scene_lib


def _inverse(d):
  """Returns 1 / d of ray directions `d`, finite where they are 0."""
  inverse = 1 / d
  # Rays parallel to a slab would give infinity minus infinity.
  return np.minimum(inverse, scene_lib.f32(1e9), out=inverse)


def _like(half, rays):
  """Appends axes of size 1 to `half` until it has as many as `rays`."""
  return half.reshape(half.shape + (1,) * (rays.ndim - half.ndim))


def _slabs(o, inverse, half):
  """Returns the ray parameters where rays enter and leave slabs |x| < half.

  Args:
    o: [K, ...] origins, for K slabs.
    inverse: [K, ...] inverse directions.
    half: [K] or [K, ...] half widths.
  """
  middle = inverse * -o
  reach = np.abs(inverse)
  reach *= _like(half, reach)
  near = middle - reach
  middle += reach
  return near, middle


def _quadric(a, b, c):
  """Returns the interval with a t^2 + 2 b t + c < 0, which may be empty."""
  root = b * b
  root -= a * c
  missed = root <= 0
  np.sqrt(np.maximum(root, 0, out=root), out=root)
  inverse = 1 / a
  near, far = (-b - root) * inverse, (root - b) * inverse
  np.copyto(near, scene_lib.FAR, where=missed)
  return near, far


def hit(kind: int, o, d, half):
  """Intersects rays with a convex primitive.

  Args:
    kind: BOX, TUBE or ELLIPSOID.
    o: [3, ...] origins along the primitive's axes.
    d: [3, ...] directions.
    half: [3] or [3, ...] half extents.

  Returns:
    The nearest parameter, 0 for rays that start inside, and whether the ray
    hits the primitive.
  """
  if kind == scene_lib.BOX:
    near, far = _slabs(o, _inverse(d), half)
    near = np.maximum(np.maximum(near[0], near[1]), near[2])
    far = np.minimum(np.minimum(far[0], far[1]), far[2])
  else:
    axes = 2 if kind == scene_lib.TUBE else 3
    half = _like(half, d)
    e, f = o[:axes] / half[:axes], d[:axes] / half[:axes]
    near, far = _quadric(
      (f * f).sum(0), (e * f).sum(0), (e * e).sum(0) - scene_lib.f32(1)
    )
    if kind == scene_lib.TUBE:
      enter, leave = _slabs(o[2:], _inverse(d[2:]), half[2:])
      np.maximum(near, enter[0], out=near)
      np.minimum(far, leave[0], out=far)
  np.maximum(near, 0, out=near)
  return near, near < far


def leave_room(o, d, half) -> np.ndarray:
  """Returns the parameters at which rays from inside a box hit its walls."""
  _, far = _slabs(o, _inverse(d), half)
  return np.minimum(np.minimum(far[0], far[1]), far[2])


def dot3(m, x):
  """Multiplies a row `m` [3] by planes `x` [3, M] without BLAS."""
  return m[0] * x[0] + m[1] * x[1] + m[2] * x[2]


def _turned(m, x):
  """Multiplies a matrix `m` [3, 3] by `x` [3, M] without BLAS."""
  return m[:, :1] * x[0] + m[:, 1:2] * x[1] + m[:, 2:] * x[2]


@dataclasses.dataclass(frozen=True)
class _Group:
  """Primitives of one object.

  Attributes:
    low: [3, 1] lower corner of the bounding box along world axes.
    high: [3, 1] upper corner of this box.
    turn: [3, 3] rotation from world axes to the object's axes.
    middle: [3, 1] centre of the bounding box along the object's axes.
    half: [3] half extents of this box.
    parts: Kind, centre [3, 1] and half extents [3] of each primitive, and its
      rotation relative to the object, None for the identity.
  """

  low: np.ndarray
  high: np.ndarray
  turn: np.ndarray
  middle: np.ndarray
  half: np.ndarray
  parts: list[tuple[int, np.ndarray, np.ndarray, np.ndarray | None]]


_RUN = 16  # Neighbouring rays with a common bounding box.


class Tracer:
  """Finds the nearest hits of arbitrary rays, with bounding boxes of objects.

  Rays are rotated into the frame of an object once, not once for each of its
  primitives, most of which are aligned with the object.
  """

  def __init__(self, scene: scene_lib.Scene):
    self._groups = []
    corners = scene_lib.corners(scene)
    # Glowing primitives must not shadow their own light.
    solid = (scene.glow == 0) & (scene.kind != scene_lib.ROOM)
    for group in np.unique(scene.group[solid]):
      members = np.flatnonzero((scene.group == group) & solid)
      turn = scene.rotation[members[0]]
      world = corners[members].reshape(-1, 3)
      own = world @ turn.T
      low, high = own.min(0), own.max(0)
      rests = scene.rotation[members] @ turn.T
      aligned = np.isclose(rests, np.eye(3), atol=1e-4).all((1, 2))
      parts = [
        (
          int(scene.kind[p]),
          (turn @ scene.centre[p])[:, None],
          scene.half[p],
          None if same else rest,
        )
        for p, rest, same in zip(members, rests, aligned, strict=True)
      ]
      self._groups.append(
        _Group(
          # Enlarged by a millimetre against rounding.
          low=world.min(0)[:, None] - scene_lib.f32(1e-3),
          high=world.max(0)[:, None] + scene_lib.f32(1e-3),
          turn=turn,
          middle=((low + high) / 2)[:, None],
          half=(high - low) / 2,
          parts=parts,
        )
      )

  def nearest(self, origins: np.ndarray, directions: np.ndarray):
    """Returns the nearest ray parameters [M], at most 1, of rays [3, M]."""
    count = origins.shape[1]
    best = np.ones(count, scene_lib.f32)
    # Most rays end far from an object: test bounding boxes of neighbouring
    # rays first.
    runs = np.arange(0, count, _RUN)
    ends = origins + directions
    low = np.minimum.reduceat(np.minimum(origins, ends), runs, 1)
    high = np.maximum.reduceat(np.maximum(origins, ends), runs, 1)
    for group in self._groups:
      near = ((low < group.high) & (high > group.low)).all(0)
      some = (runs[near][:, None] + np.arange(_RUN)).reshape(-1)
      some = some[some < count]
      o = _turned(group.turn, origins.take(some, 1))
      d = _turned(group.turn, directions.take(some, 1))
      found = best.take(some)
      t, met = hit(scene_lib.BOX, o - group.middle, d, group.half)
      inside = np.flatnonzero(met & (t < found))
      if not len(inside):
        continue
      some, found = some.take(inside), found.take(inside)
      o, d = o.take(inside, 1), d.take(inside, 1)
      for kind, centre, half, rest in group.parts:
        e, f = o - centre, d
        if rest is not None:
          e, f = _turned(rest, e), _turned(rest, d)
        t, met = hit(kind, e, f, half)
        np.minimum(found, t, out=found, where=met)
      best[some] = found
    return best
