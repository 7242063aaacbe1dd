"""Looks up baked light and textures at ray hits."""

import numpy as np

from xfactor.data.worlds.raycaster import scene as scene_lib
from xfactor.data.worlds.raycaster import tracing


class Tables:
  """Lookup tables of a lit scene, one array for each component.

  Attributes:
    rotation: Nine arrays [P], from world axes to own axes.
    half: Three arrays [P] of half extents.
    curved: bool [P], whether a primitive is a tube or an ellipsoid.
    normal: Three arrays [P * 6]; zeros for curved primitives.
    detail: [P * 6] log2 of texture texels per metre.
    repeats: Two arrays [P * 6] of texture repeats.
    first: [P * 6] first texel of the light map.
    columns: [P * 6] columns of the light map.
    rows: [P * 6] rows of the light map.
    start: [P * 6] first texel of the texture.
    light: Three arrays [M] of light texels.
  """

  def __init__(self, baked: scene_lib.Baked):
    scene = baked.scene

    def planes(table):
      return list(np.ascontiguousarray(table.T))

    self.rotation = planes(scene.rotation.reshape(-1, 9))
    self.half = planes(scene.half)
    self.curved = scene.kind >= scene_lib.TUBE
    normals = np.einsum(
      'fi,pij->pfj', scene_lib.NORMAL, scene.rotation
    ).reshape(-1, 3)
    normals[np.repeat(self.curved, 6)] = 0
    self.normal = planes(normals)
    self.detail = baked.detail
    self.repeats = planes(baked.repeats)
    self.first, columns, rows, self.start = planes(baked.chart.astype(np.intp))
    self.columns, self.rows = columns, rows
    self.light = planes(baked.light)


def _surface(scene, tables, primitive, offset):
  """Returns the surface coordinates of points.

  Args:
    scene: Scene with the primitives.
    tables: Lookup tables of the scene.
    primitive: [M] primitive of each point.
    offset: Three [M], points minus the centres of their primitives.

  Returns:
    Face [M], and coordinates across and along it in 0..1 [M].
  """
  local = [
    tracing.dot3(
      [r.take(primitive) for r in tables.rotation[i : i + 3]], offset
    )
    for i in (0, 3, 6)
  ]
  half = [h.take(primitive) for h in tables.half]
  # Choose the face that the point is farthest outside of.
  out = [np.abs(local[i]) - half[i] for i in range(3)]
  flat = [
    local[i] / half[i] * scene_lib.f32(0.5) + scene_lib.f32(0.5)
    for i in range(3)
  ]
  on_z = (out[2] > out[0]) & (out[2] > out[1])
  on_x = (out[0] > out[1]) & ~on_z
  across = np.where(on_x, flat[1], flat[0])
  along = np.where(on_z, flat[1], flat[2])
  side = np.where(on_z, local[2], np.where(on_x, local[0], local[1]))
  face = np.where(on_z, np.intp(4), np.where(on_x, np.intp(0), np.intp(2)))
  face += side < 0

  curved = np.flatnonzero(tables.curved.take(primitive))
  if len(curved):
    x, y = (2 * flat[i].take(curved) - 1 for i in range(2))
    tube = scene.kind.take(primitive.take(curved)) == scene_lib.TUBE
    radial = (np.sqrt(x * x + y * y) - 1) * half[0].take(curved)
    side = ~tube | (radial > out[2].take(curved))
    some = curved[side]
    angle = np.arctan2(y[side], x[side]) * scene_lib.f32(0.5 / np.pi)
    across[some] = angle - np.floor(angle)
    along[some] = flat[2].take(some)
    face[some] = scene_lib.SIDE
    caps = curved[~side]
    across[caps], along[caps] = flat[0].take(caps), flat[1].take(caps)
    face[caps] = 4 + (local[2].take(caps) < 0)
  return face, across, along


def _lookup_light(tables: Tables, index, across, along):
  """Returns bilinearly interpolated light, three [M], of charts `index` [M]."""
  columns, rows = tables.columns.take(index), tables.rows.take(index)
  x = np.clip(across * columns - scene_lib.f32(0.5), 0, columns - 1).astype(
    scene_lib.f32
  )
  y = np.clip(along * rows - scene_lib.f32(0.5), 0, rows - 1).astype(
    scene_lib.f32
  )
  x0, y0 = x.astype(np.int32), y.astype(np.int32)
  fx, fy = x - x0, (y - y0).astype(scene_lib.f32)
  place = tables.first.take(index) + y0 * columns + x0
  right = place + (x0 + 1 < columns)
  up = columns * (y0 + 1 < rows)
  above, above_right = place + up, right + up
  light = []
  for plane in tables.light:
    # The product with `fx` is computed in float64.
    lower, upper = plane.take(place), plane.take(above)
    lower += (plane.take(right) - lower) * fx
    upper += (plane.take(above_right) - upper) * fx
    upper -= lower
    upper *= fy
    lower += upper
    light.append(lower)
  return light


def _lookup_texture(
  baked: scene_lib.Baked, tables, index, across, along, level
):
  """Returns texels [M, 3] of the mip level of each sample's footprint."""
  top = len(baked.level) - 1
  level = np.clip(level, 0, top).astype(np.intp)
  resolution = np.int32(1) << (top - np.arange(top + 1, dtype=np.int32))
  sizes = resolution.astype(scene_lib.f32).take(level)
  mask = (resolution - 1).take(level)
  u = (across * tables.repeats[0].take(index) * sizes).astype(np.int32)
  v = (along * tables.repeats[1].take(index) * sizes).astype(np.int32)
  u &= mask
  v &= mask
  place = tables.start.take(index) + baked.level.take(level)
  place += v * resolution.take(level) + u
  return baked.texels.take(place, 0)


def shade(
  baked: scene_lib.Baked,
  tables,
  depth,
  primitive,
  xs,
  ys,
  world_to_camera,
  eye,
  pixel,
):
  """Returns exposed linear colours in 0..1, three [F, S, H, W].

  Args:
    baked: The lit scene.
    tables: Lookup tables of the scene.
    depth: [F, S, H, W] z-depth of each sample.
    primitive: [F, S, H, W] primitive of each sample.
    xs: [F, S, 1, W] x at depth 1, see `render._visible`.
    ys: [F, S, H, 1] y at depth 1.
    world_to_camera: [F, 3, 4] camera poses.
    eye: [F, 3] camera centres.
    pixel: [F] size of a pixel at depth 1.
  """
  scene = baked.scene
  shape = depth.shape
  m = world_to_camera.transpose(1, 2, 0)[..., None, None, None]
  ray = [xs * m[0, i] + (ys * m[1, i] + m[2, i]) for i in range(3)]
  length = np.sqrt(xs * xs + (ys * ys + 1))
  count = np.arange(len(eye))[:, None, None, None] * len(scene.kind)
  place = (primitive + count).reshape(-1)
  relative = (eye[:, None] - scene.centre).reshape(-1, 3).T
  offset = [
    (depth * ray[i]).reshape(-1) + relative[i].take(place) for i in range(3)
  ]
  primitive = primitive.reshape(-1).astype(np.intp)
  face, across, along = _surface(scene, tables, primitive, offset)
  index = primitive * 6 + face
  # Surfaces at grazing angles need a coarser level; the square root is a
  # compromise between blur across and aliasing along.
  normal = [n.take(index) for n in tables.normal]
  cosine = tracing.dot3(normal, [r.reshape(-1) for r in ray])
  cosine = np.maximum(np.abs(cosine) / length.reshape(-1), scene_lib.f32(0.06))
  footprint = (depth * length * pixel[:, None, None, None]).reshape(-1)
  level = np.log2(footprint * footprint / cosine) * scene_lib.f32(0.5)
  level += tables.detail.take(index)
  # Each sample of a pixel rounds the level differently, which blends levels at
  # the cost of one lookup.
  shift = (np.arange(shape[1], dtype=scene_lib.f32) * 2 % 5 + 0.5) / 5
  level = (level.reshape(shape) + shift[:, None, None]).reshape(-1)
  colour = _lookup_texture(baked, tables, index, across, along, level)
  light = _lookup_light(tables, index, across, along)
  for i, plane in enumerate(light):
    plane *= colour[:, i]
    np.negative(plane, out=plane)
    np.expm1(plane, out=plane)
    np.negative(plane, out=plane)
  return [plane.reshape(shape) for plane in light]
