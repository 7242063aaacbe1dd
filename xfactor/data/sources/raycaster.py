"""A small vectorised ray caster for rooms made of boxes, tubes and ellipsoids.

Two passes, so that a frame costs milliseconds. `bake` lights a static scene
once: every face of every primitive gets a small light map (soft shadows,
ambient occlusion, one bounce). `render` then finds the nearest primitive of
each ray inside the primitive's screen rectangle only, and looks up a mip-mapped
texture and the light map. Surfaces are Lambertian, so a point looks the same
from everywhere, as novel-view synthesis assumes in its simplest form.

Units are metres with z up; colours are linear; float32 throughout.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

ROOM, BOX, TUBE, ELLIPSOID = range(4)

_f32 = np.float32
_FAR = _f32(np.inf)

# A face is 2 * axis + (1 if on the negative side). Across it run two axes.
_NORMAL = np.repeat(np.eye(3, dtype=_f32), 2, axis=0)
_NORMAL[1::2] *= -1
_ACROSS = np.eye(3, dtype=_f32)[[1, 1, 0, 0, 0, 0]]
_ALONG = np.eye(3, dtype=_f32)[[2, 2, 2, 2, 1, 1]]
_SIDE = 0  # The one face of an ellipsoid and the round one of a tube.

# Where a pixel is sampled: its centre, which also gives the depth, and a
# rotated square, which smooths edges of every slope.
_SAMPLES = np.array(
  [[0, 0], [-0.38, -0.14], [0.14, -0.38], [0.38, 0.14], [-0.14, 0.38]], _f32
)


@dataclasses.dataclass(frozen=True)
class Light:
  """A rectangle that shines, or the sun seen through one.

  Attributes:
    centre: [3].
    u: [3] half of one side; for lamps the rectangle stands for a small ball.
    v: [3] half of the other side.
    colour: [3] irradiance at a distance of one metre (sun: anywhere).
    normal: [3] side that shines, or zeros for all sides.
    sun: [3] direction to the sun, or None for a light of finite distance.
  """

  centre: np.ndarray
  u: np.ndarray
  v: np.ndarray
  colour: np.ndarray
  normal: np.ndarray
  sun: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Scene:
  """P primitives; the first is the room, a box seen from inside.

  Attributes:
    kind: int [P], ROOM, BOX, TUBE (about its z axis) or ELLIPSOID.
    centre: [P, 3].
    half: [P, 3] half extents along the primitive's own axes.
    rotation: [P, 3, 3] from world to own axes.
    group: int [P]; primitives of one object share a number.
    glow: [P] radiance relative to white paper in average light; 0 = none.
    tint: [P, 6, 3] multiplies the texture of each face.
    texture: int [P, 6] texture of each face.
    tile: [P, 6] metres that one texture spans; 0 = stretched over the face.
    albedo: [T, R, R, 3] periodic textures, rows upwards, R a power of two.
    lights: What shines.
    key: Brightness of the exposure, about 0.3.
  """

  kind: np.ndarray
  centre: np.ndarray
  half: np.ndarray
  rotation: np.ndarray
  group: np.ndarray
  glow: np.ndarray
  tint: np.ndarray
  texture: np.ndarray
  tile: np.ndarray
  albedo: np.ndarray
  lights: tuple[Light, ...]
  key: float


@dataclasses.dataclass(frozen=True)
class Baked:
  """A lit scene, ready to render.

  Attributes:
    scene: What was lit.
    light: [M, 3] light maps of all charts (one a face), tint included.
    chart: int [P * 6, 4] first light texel, columns, rows, first texel of the
      texture.
    repeats: [P * 6, 2] how often the texture repeats over the face.
    detail: [P * 6] log2 of texture texels per metre.
    texels: [K, 3] all levels of all textures.
    level: int [L] offset of each level inside a texture.
  """

  scene: Scene
  light: np.ndarray
  chart: np.ndarray
  repeats: np.ndarray
  detail: np.ndarray
  texels: np.ndarray
  level: np.ndarray


def _slab(o, d, h):
  """Ray parameters where a ray enters and leaves the slab |x| < h."""
  inverse = 1 / d
  # Rays along the slab would give infinity less infinity.
  np.minimum(inverse, _f32(1e9), out=inverse)
  middle = inverse * -o
  np.abs(inverse, out=inverse)
  inverse *= h
  return middle - inverse, middle + inverse


def _quadric(a, b, c):
  """Where a t^2 + 2 b t + c < 0: enters and leaves, or an empty interval."""
  root = b * b
  root -= a * c
  missed = root <= 0
  np.sqrt(np.maximum(root, 0, out=root), out=root)
  inverse = 1 / a
  near, far = (-b - root) * inverse, (root - b) * inverse
  np.copyto(near, _FAR, where=missed)
  return near, far


def _hit(kind: int, o, d, half) -> np.ndarray:
  """Nearest parameter at which rays meet a convex primitive, or infinity.

  A ray that starts inside meets it at 0.

  Args:
    kind: BOX, TUBE or ELLIPSOID.
    o: Three arrays or numbers, origins along the primitive's axes.
    d: Three arrays, directions.
    half: Half extents.
  """
  if kind == BOX:
    near, far = _slab(o[0], d[0], half[0])
    for axis in (1, 2):
      enter, leave = _slab(o[axis], d[axis], half[axis])
      np.maximum(near, enter, out=near)
      np.minimum(far, leave, out=far)
  else:
    round_axes = (0, 1) if kind == TUBE else (0, 1, 2)
    a = b = c = _f32(0)
    for axis in round_axes:
      e, f = o[axis] / half[axis], d[axis] / half[axis]
      a, b, c = a + f * f, b + e * f, c + e * e
    near, far = _quadric(a, b, c - _f32(1))
    if kind == TUBE:
      enter, leave = _slab(o[2], d[2], half[2])
      np.maximum(near, enter, out=near)
      np.minimum(far, leave, out=far)
  missed = near >= far
  missed |= far <= 0
  np.maximum(near, 0, out=near)
  np.copyto(near, _FAR, where=missed)
  return near


def _leave_room(o, d, half) -> np.ndarray:
  """Parameter at which rays from inside a box meet its walls."""
  far = _slab(o[0], d[0], half[0])[1]
  for axis in (1, 2):
    np.minimum(far, _slab(o[axis], d[axis], half[axis])[1], out=far)
  return far


def _corners(scene: Scene) -> np.ndarray:
  """World corners [P, 8, 3] of the primitives' own bounding boxes."""
  signs = np.stack(np.meshgrid(*[[-1, 1]] * 3, indexing='ij'), -1)
  local = signs.reshape(1, 8, 3).astype(_f32) * scene.half[:, None]
  return scene.centre[:, None] + local @ scene.rotation


def _dot3(m, x):
  """Row `m` [3] times planes `x` [3, M], without a matrix library."""
  return m[0] * x[0] + m[1] * x[1] + m[2] * x[2]


class _Tracer:
  """Nearest hits of arbitrary rays; objects are boxed in to be skipped.

  Rays are turned into an object's frame once, not once for each of its
  primitives, most of which are aligned with it.
  """

  def __init__(self, scene: Scene):
    self._groups = []
    corners = _corners(scene)
    # What glows must not stand in its own light.
    solid = (scene.glow == 0) & (scene.kind != ROOM)
    for group in np.unique(scene.group[solid]):
      members = np.flatnonzero((scene.group == group) & solid)
      turn = scene.rotation[members[0]]
      box = corners[members].reshape(-1, 3) @ turn.T
      low, high = box.min(0), box.max(0)
      parts = []
      for p in members:
        rest = scene.rotation[p] @ turn.T
        rest = None if np.allclose(rest, np.eye(3), atol=1e-4) else rest
        centre = turn @ scene.centre[p]
        parts.append((int(scene.kind[p]), centre, scene.half[p], rest))
      self._groups.append((turn, (low + high) / 2, (high - low) / 2, parts))

  def nearest(self, origins: np.ndarray, directions: np.ndarray):
    """Parameters [M], at most 1, of planes of rays [3, M]."""
    best = np.ones(origins.shape[1], _f32)
    for turn, middle, size, parts in self._groups:
      o = [_dot3(row, origins) for row in turn]
      d = [_dot3(row, directions) for row in turn]
      t = _hit(BOX, [o[i] - middle[i] for i in range(3)], d, size)
      some = np.flatnonzero(t < best)
      if not len(some):
        continue
      o, d = [x[some] for x in o], [x[some] for x in d]
      found = best[some]
      for kind, centre, half, rest in parts:
        e, f = [o[i] - centre[i] for i in range(3)], d
        if rest is not None:
          e = [_dot3(row, e) for row in rest]
          f = [_dot3(row, d) for row in rest]
        np.minimum(found, _hit(kind, e, f, half), out=found)
      best[some] = found
    return best


def _chart_lengths(scene: Scene) -> np.ndarray:
  """Metres [P, 6, 2] that each face measures across and along."""
  across = 2 * scene.half @ _ACROSS.T
  along = 2 * scene.half @ _ALONG.T
  curved = scene.kind >= TUBE
  across[curved, _SIDE] = np.pi * scene.half[curved, :2].sum(1)
  return np.stack([across, along], axis=-1)


@dataclasses.dataclass
class _LightTexels:
  """Points [3, M] of all light maps, with what the light needs to know."""

  primitive: np.ndarray
  face: np.ndarray
  column: np.ndarray
  row: np.ndarray
  chart: np.ndarray
  position: np.ndarray
  normal: np.ndarray
  area: np.ndarray


def _light_texels(scene: Scene, lengths: np.ndarray):
  """Lays out the charts: a sample every few centimetres on all faces."""
  count = len(scene.kind)
  # A metre of floor shows more shadows than a metre of ceiling.
  density = np.full((count, 6, 1), 9, _f32)
  density[:, 5] = 3
  density[0] = 7
  density[0, 4:] = [[4], [10]]
  sizes = np.ceil(lengths * density).astype(np.int64)
  most = np.where(scene.kind == ROOM, 120, 22)[:, None, None]
  sizes = np.clip(sizes, 1, most)
  # Curved faces shade smoothly only with enough texels all round.
  curved = scene.kind >= TUBE
  sizes[curved, _SIDE, 0] = np.maximum(sizes[curved, _SIDE, 0], 8)
  sizes[scene.kind == ELLIPSOID, _SIDE, 1] = 8
  sizes[curved, 1:4] = 1
  sizes[scene.glow > 0] = 1
  sizes = sizes.reshape(-1, 2)
  texels = sizes.prod(-1)
  first = np.cumsum(texels) - texels
  chart = np.repeat(np.arange(len(sizes)), texels)
  index = np.arange(len(chart)) - first[chart]
  column, row = index % sizes[chart, 0], index // sizes[chart, 0]
  primitive, face = chart // 6, chart % 6
  s = ((column + 0.5) / sizes[chart, 0]).astype(_f32)
  t = ((row + 0.5) / sizes[chart, 1]).astype(_f32)
  normal = _NORMAL[face]
  point = normal + (2 * s - 1)[:, None] * _ACROSS[face]
  point += (2 * t - 1)[:, None] * _ALONG[face]
  kind = scene.kind[primitive]
  tube = np.flatnonzero((kind == TUBE) & (face == _SIDE))
  ball = np.flatnonzero(kind == ELLIPSOID)
  half = scene.half[primitive]
  for some in (tube, ball):
    angle = 2 * _f32(np.pi) * s[some]
    z = 2 * t[some] - 1
    radius = np.sqrt(1 - z * z) if some is ball else np.ones_like(z)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    point[some] = np.stack([x, y, z], -1)
    normal[some] = point[some] / half[some]
    if some is tube:
      normal[some, 2] = 0
    normal[some] /= np.linalg.norm(normal[some], axis=-1, keepdims=True)
  normal[kind == ROOM] *= -1
  rotation = scene.rotation[primitive]
  position = scene.centre[primitive] + np.einsum(
    'mji,mj->mi', rotation, point * half
  )
  normal = np.einsum('mji,mj->mi', rotation, normal)
  area = lengths.reshape(-1, 2).prod(-1) / texels
  area = np.where(
    (face == _SIDE) | (scene.kind[primitive] < TUBE), area[chart], 0
  )
  layout = np.concatenate([first[:, None], sizes], axis=1)
  return layout, _LightTexels(
    primitive,
    face,
    column,
    row,
    chart,
    np.ascontiguousarray(position.T),
    np.ascontiguousarray(normal.T),
    area,
  )


def _pattern(texels: _LightTexels, sample: int, samples: int):
  """Two numbers [M] in -1..1: a stratified draw that varies over 3x3 texels.

  Neighbours take different draws, which the blur over 3x3 texels then mixes:
  nine times the samples for the price of one.
  """
  cell = texels.column % 3 + 3 * (texels.row % 3)
  index = (sample * 9 + cell * 4 % 9).astype(_f32)
  u = (index + 0.5) / (9 * samples)
  v = (index * _f32(0.618034) + 0.25) % 1
  return u * 2 - 1, v * 2 - 1


def _blur(values: np.ndarray, layout: np.ndarray, texels: _LightTexels):
  """Means over 3x3 texels inside each chart."""
  first, columns, rows = layout[texels.chart].T
  column, row = texels.column, texels.row
  index = np.arange(len(values))
  for here, count, stride in ((column, columns, 1), (row, rows, columns)):
    before = index - stride * (here > 0)
    after = index + stride * (here + 1 < count)
    values = (values + values[before] + values[after]) / _f32(3)
  return values


def _direct(tracer, texels, light: Light, samples: int) -> np.ndarray:
  """Share of a light's colour [M] that reaches each light texel."""
  total = np.zeros(len(texels.chart), _f32)
  lifted = texels.position + _f32(0.015) * texels.normal
  for sample in range(samples):
    a, b = _pattern(texels, sample, samples)
    if light.sun is None:
      to_light = light.centre[:, None] - lifted
      to_light += light.u[:, None] * a + light.v[:, None] * b
      square = (to_light * to_light).sum(0)
      cosine = (to_light * texels.normal).sum(0)
      # The 0.3 keeps what stands close to a lamp from burning out.
      share = np.maximum(cosine, 0) / np.sqrt(square) / (square + _f32(0.3))
      if light.normal.any():
        emitted = -_dot3(light.normal, to_light) / np.sqrt(square)
        share = share * np.maximum(emitted, 0)
    else:
      to_light, share = _sunshine(light, lifted, texels.normal, a, b)
    lit = np.flatnonzero(share > 0.003)
    free = tracer.nearest(lifted[:, lit], to_light[:, lit]) >= 1
    total[lit] += share[lit] * free
  return total / _f32(samples)


def _sunshine(light: Light, position, normal, a, b):
  """Rays to the window and what of the sun enters there."""
  # Half a degree would be the real sun; twice that hides the texels.
  direction = light.sun[:, None] + _f32(0.012) * np.stack([a, b, a * b])
  gap = _dot3(light.normal, light.centre[:, None] - position)
  to_light = direction * (gap / _dot3(light.normal, direction))
  offset = position + to_light - light.centre[:, None]
  x = _dot3(light.u, offset) / (light.u @ light.u)
  y = _dot3(light.v, offset) / (light.v @ light.v)
  # The cross in the middle is the window's bars.
  open_ = (np.abs(x) < 0.95) & (np.abs(y) < 0.95)
  open_ &= (np.abs(x) > 0.05) & (np.abs(y) > 0.04)
  cosine = np.maximum(_dot3(light.sun, normal), 0)
  return to_light, np.where(open_ & (gap < 0), cosine, 0).astype(_f32)


def _ambient_share(scene, tracer, texels, samples: int) -> np.ndarray:
  """How open [M], 0..1, the surroundings of each texel are within a metre."""
  reach = _f32(1.0)
  normal = texels.normal
  helper = np.where(np.abs(normal[2]) < 0.9, [[0], [0], [1]], [[1], [0], [0]])
  side = np.cross(normal, helper.astype(_f32), axis=0)
  side /= np.linalg.norm(side, axis=0)
  other = np.cross(normal, side, axis=0)
  lifted = texels.position + _f32(0.015) * normal
  total = np.zeros(len(texels.chart), _f32)
  room = scene.centre[0][:, None]
  for sample in range(samples):
    a, b = _pattern(texels, sample, samples)
    angle = _f32(np.pi) * a
    sine = np.sqrt((b + 1) / 2)
    cosine = np.sqrt(np.maximum(1 - sine * sine, 0.01))
    rays = normal * cosine + side * (sine * np.cos(angle))
    rays = (rays + other * (sine * np.sin(angle))) * reach
    t = tracer.nearest(lifted, rays)
    np.minimum(t, _leave_room(lifted - room, rays, scene.half[0]), out=t)
    total += np.clip(t, 0, 1)
  return total / _f32(samples)


def _bounced(scene, texels, direct: np.ndarray, mean: np.ndarray):
  """Ambient light [M, 3]: what the six sides of the room give back."""
  weight = texels.area * (texels.primitive == 0)
  sides = []
  for face in range(6):
    some = np.flatnonzero((texels.face == face) & (weight > 0))
    lit = np.average(direct[some], axis=0, weights=weight[some])
    sides.append(lit * mean[0, face] * scene.tint[0, face])
  sides = np.asarray(sides, _f32)
  sides = 0.55 * sides + 0.45 * sides.mean(0)
  # A normal sees the side it points at; the squares sum to one.
  share = np.concatenate(
    [np.maximum(texels.normal, 0) ** 2, np.minimum(texels.normal, 0) ** 2]
  )
  share = share[[0, 3, 1, 4, 2, 5]].astype(_f32)
  return np.einsum('sm,sc->mc', share, sides)


def _pyramid(albedo: np.ndarray):
  """All mip levels of all textures, texture after texture, and offsets."""
  levels = [albedo]
  while levels[-1].shape[1] > 1:
    fine = levels[-1]
    levels.append(
      (
        fine[:, ::2, ::2]
        + fine[:, 1::2, ::2]
        + fine[:, ::2, 1::2]
        + fine[:, 1::2, 1::2]
      )
      / _f32(4)
    )
  flat = [level.reshape(len(albedo), -1, 3) for level in levels]
  sizes = np.array([level.shape[1] for level in flat])
  return np.concatenate(flat, 1).reshape(-1, 3), np.cumsum(sizes) - sizes


def bake(scene: Scene, samples: int = 2) -> Baked:
  """Lights a scene.

  Args:
    scene: What to light; its first primitive is the room.
    samples: Shadow and ambient rays a light texel; nine times as many count,
      because neighbours share.
  """
  with np.errstate(all='ignore'):
    return _bake(scene, samples)


def _bake(scene: Scene, samples: int) -> Baked:
  lengths = _chart_lengths(scene)
  layout, texels = _light_texels(scene, lengths)
  tracer = _Tracer(scene)
  mean = scene.albedo.mean((1, 2))[scene.texture]
  direct = np.zeros((len(texels.chart), 3), _f32)
  for light in scene.lights:
    share = _direct(tracer, texels, light, samples)
    direct += share[:, None] * light.colour
  openness = _ambient_share(scene, tracer, texels, 2 * samples)[:, None]
  direct = _blur(direct, layout, texels)
  openness = _blur(openness, layout, texels)
  ambient = _bounced(scene, texels, direct, mean)
  # Many bounces add up; corners get some light from their surroundings.
  light = direct + ambient * 0.8 * (0.1 + 0.9 * openness**2)
  tint = scene.tint.reshape(-1, 3)[texels.chart]
  light *= tint
  radiance = (light * mean.reshape(-1, 3)[texels.chart]).mean(-1)
  average = np.exp(np.average(np.log(radiance + 1e-4), weights=texels.area))
  light *= _f32(scene.key / average)
  glowing = scene.glow[texels.primitive] > 0
  light[glowing] = (scene.glow[texels.primitive, None] * tint)[glowing]

  resolution = scene.albedo.shape[1]
  texels_rgb, level = _pyramid(scene.albedo)
  tile = scene.tile[..., None]
  repeats = np.where(tile > 0, lengths / np.maximum(tile, 1e-3), 1)
  curved = scene.kind >= TUBE
  repeats[curved, _SIDE, 0] = np.ceil(repeats[curved, _SIDE, 0])
  detail = np.log2(resolution * repeats / lengths).mean(-1)
  start = scene.texture.reshape(-1, 1) * (len(texels_rgb) // len(scene.albedo))
  return Baked(
    scene=scene,
    light=light.astype(_f32),
    chart=np.concatenate([layout, start], axis=1).astype(np.int32),
    repeats=repeats.reshape(-1, 2).astype(_f32),
    detail=detail.reshape(-1).astype(_f32),
    texels=texels_rgb,
    level=level.astype(np.int32),
  )


def _rectangles(corners, world_to_camera, intrinsics, size: int):
  """Pixels [P, 4] (x0, x1, y0, y1) outside which no primitive can be seen."""
  local = corners @ world_to_camera[:, :3].T + world_to_camera[:, 3]
  z = local[..., 2]
  near = 0.05
  xy = local[..., :2] / np.maximum(z, near)[..., None]
  xy = (xy * intrinsics[:2] + intrinsics[2:]) * size
  low, high = np.floor(xy.min(1)) - 1, np.ceil(xy.max(1)) + 1
  # Corners behind the camera project to anywhere: look at the whole image.
  crosses = (z < near).any(1)
  low[crosses], high[crosses] = 0, size
  high[(z < near).all(1)] = 0
  box = np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], -1)
  return np.clip(box, 0, size).astype(int)


def _visible(scene, corners, intrinsics, world_to_camera, size: int):
  """Nearest primitive and z-depth of every sample.

  Returns:
    Depth [S, H, W], primitive [S, H, W], the samples' x [S, 1, W] and
    y [S, H, 1] on the plane at depth 1, and the eye [3].
  """
  fx, fy, cx, cy = intrinsics
  grid = np.arange(size, dtype=_f32) + _f32(0.5) + _SAMPLES.T[:, :, None]
  xs = ((grid[0] / size - cx) / fx)[:, None, :]
  ys = ((grid[1] / size - cy) / fy)[:, :, None]
  camera_axes = world_to_camera[:, :3]
  eye = -camera_axes.T @ world_to_camera[:, 3]
  # Rays in a primitive's axes are linear in x and y: two sums an axis.
  axes = scene.rotation @ camera_axes.T
  origins = np.einsum('pij,pj->pi', scene.rotation, eye - scene.centre)
  boxes = _rectangles(corners, world_to_camera, intrinsics, size)

  def rays(p, xs, ys):
    a = axes[p]
    return [xs * a[i, 0] + (ys * a[i, 1] + a[i, 2]) for i in range(3)]

  depth = _leave_room(origins[0], rays(0, xs, ys), scene.half[0])
  primitive = np.zeros(depth.shape, np.int32)
  for p in range(1, len(boxes)):
    x0, x1, y0, y1 = boxes[p]
    if x0 >= x1 or y0 >= y1:
      continue
    t = _hit(
      int(scene.kind[p]),
      origins[p],
      rays(p, xs[:, :, x0:x1], ys[:, y0:y1]),
      scene.half[p],
    )
    window = depth[:, y0:y1, x0:x1]
    closer = t < window
    np.copyto(window, t, where=closer)
    np.copyto(primitive[:, y0:y1, x0:x1], np.int32(p), where=closer)
  return depth, primitive, xs, ys, eye


def _surface(scene, primitive, offset):
  """Where on its primitive each point lies.

  Args:
    scene: The primitives.
    primitive: [M].
    offset: Three [M], points less their primitives' centres.

  Returns:
    Face [M], and place across and along it in 0..1 [M].
  """
  rotation = scene.rotation.reshape(-1, 9).take(primitive, 0)
  local = [
    rotation[:, i] * offset[0]
    + rotation[:, i + 1] * offset[1]
    + rotation[:, i + 2] * offset[2]
    for i in (0, 3, 6)
  ]
  half = scene.half.take(primitive, 0)
  # The face is the one the point sticks out of the most.
  out = [np.abs(local[i]) - half[:, i] for i in range(3)]
  flat = [local[i] / half[:, i] * _f32(0.5) + _f32(0.5) for i in range(3)]
  on_z = (out[2] > out[0]) & (out[2] > out[1])
  on_x = (out[0] > out[1]) & ~on_z
  axis = np.where(on_z, 2, np.where(on_x, 0, 1))
  across = np.where(on_x, flat[1], flat[0])
  along = np.where(on_z, flat[1], flat[2])
  side = np.where(on_z, local[2], np.where(on_x, local[0], local[1]))
  face = 2 * axis + (side < 0)

  curved = np.flatnonzero(scene.kind.take(primitive) >= TUBE)
  if len(curved):
    x, y = 2 * flat[0][curved] - 1, 2 * flat[1][curved] - 1
    tube = scene.kind.take(primitive[curved]) == TUBE
    radial = (np.sqrt(x * x + y * y) - 1) * half[curved, 0]
    side = ~tube | (radial > out[2][curved])
    some = curved[side]
    angle = np.arctan2(y[side], x[side]) * _f32(0.5 / np.pi)
    across[some] = angle - np.floor(angle)
    along[some] = flat[2][some]
    face[some] = _SIDE
    caps = curved[~side]
    across[caps], along[caps] = flat[0][caps], flat[1][caps]
    face[caps] = 4 + (local[2][caps] < 0)
  return face, across, along


def _lookup_light(baked: Baked, chart, across, along):
  """Bilinear light [M, 3]; `chart` [M, 4]."""
  first, columns, rows = chart[:, 0], chart[:, 1], chart[:, 2]
  x = np.clip(across * columns - _f32(0.5), 0, columns - 1).astype(_f32)
  y = np.clip(along * rows - _f32(0.5), 0, rows - 1).astype(_f32)
  x0, y0 = x.astype(np.int32), y.astype(np.int32)
  fx, fy = (x - x0)[:, None], (y - y0)[:, None]
  right = (x0 + 1 < columns).astype(np.int32)
  index = first + y0 * columns + x0
  up = index + columns * (y0 + 1 < rows)
  lower = baked.light.take(index, 0)
  lower += (baked.light.take(index + right, 0) - lower) * fx
  upper = baked.light.take(up, 0)
  upper += (baked.light.take(up + right, 0) - upper) * fx
  upper -= lower
  upper *= fy
  lower += upper
  return lower


def _lookup_texture(baked: Baked, index, start, across, along, level):
  """Texels [M, 3] of the level (rounded) that a sample's footprint asks for."""
  top = len(baked.level) - 1
  level = np.clip(level, 0, top).astype(np.int32)
  resolution = np.int32(1) << (top - level)
  repeats = baked.repeats.take(index, 0)
  u = (across * repeats[:, 0] * resolution).astype(np.int32)
  v = (along * repeats[:, 1] * resolution).astype(np.int32)
  u &= resolution - 1
  v &= resolution - 1
  place = start + baked.level.take(level) + v * resolution + u
  return baked.texels.take(place, 0)


def _shade(baked: Baked, depth, primitive, xs, ys, world_to_camera, eye, pixel):
  """Exposed colours [S, H, W, 3], 0..1 and linear."""
  scene = baked.scene
  shape = depth.shape
  m = world_to_camera[:, :3]
  ray = [xs * m[0, i] + (ys * m[1, i] + m[2, i]) for i in range(3)]
  length = np.sqrt(xs * xs + (ys * ys + 1))
  primitive = primitive.reshape(-1)
  relative = (eye - scene.centre).take(primitive, 0)
  offset = [(depth * ray[i]).reshape(-1) + relative[:, i] for i in range(3)]
  face, across, along = _surface(scene, primitive, offset)
  index = primitive * 6 + face
  # Grazing surfaces need a coarser level; the root is a compromise between
  # blur across and shimmer along.
  normals = np.einsum('fi,pij->pfj', _NORMAL, scene.rotation).reshape(-1, 3)
  normals[np.repeat(scene.kind >= TUBE, 6)] = 0
  normal = normals.take(index, 0)
  cosine = sum(normal[:, i] * ray[i].reshape(-1) for i in range(3))
  length = length.reshape(-1)
  cosine = np.maximum(np.abs(cosine) / length, _f32(0.06))
  footprint = depth.reshape(-1) * length * pixel
  level = np.log2(footprint * footprint / cosine) * _f32(0.5)
  level += baked.detail.take(index)
  # Each sample of a pixel rounds the level differently and is shifted by a
  # part of a texel, which blends levels and texels for the price of one.
  count, rest = shape[0], shape[1] * shape[2]
  level += np.repeat((np.arange(count, dtype=_f32) * 2 % 5 + 0.5) / 5, rest)
  chart = baked.chart.take(index, 0)
  colour = _lookup_texture(baked, index, chart[:, 3], across, along, level)
  colour *= _lookup_light(baked, chart, across, along)
  np.negative(colour, out=colour)
  np.expm1(colour, out=colour)
  np.negative(colour, out=colour)
  return colour.reshape(*shape, 3)


def render(
  baked: Baked,
  intrinsics: np.ndarray,
  world_to_camera: np.ndarray,
  size: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Renders frames one by one.

  Args:
    baked: The lit scene.
    intrinsics: float32 [N, 4], normalised.
    world_to_camera: float32 [N, 3, 4]; the eyes are outside all objects.
    size: Height and width in pixels.

  Yields:
    sRGB uint8 [size, size, 3], anti-aliased, and float32 [size, size] z-depth
    through the pixels' centres.
  """
  corners = _corners(baked.scene)
  with np.errstate(all='ignore'):
    for camera, pose in zip(intrinsics, world_to_camera, strict=True):
      depth, primitive, xs, ys, eye = _visible(
        baked.scene, corners, camera, pose, size
      )
      pixel = _f32(0.6 / (camera[0] * size))
      linear = _shade(baked, depth, primitive, xs, ys, pose, eye, pixel)
      # The centre counts half, so that the weights resemble a small tent.
      pixels = (linear[0] / 2 + linear[1:].sum(0)) / _f32(4.5)
      rgb = np.clip(pixels, 0, 1) ** _f32(1 / 2.2)
      yield (rgb * 255 + _f32(0.5)).astype(np.uint8), depth[0]


def clearance(scene: Scene, points: np.ndarray) -> np.ndarray:
  """Distance [N] from points [N, 3] to the nearest surface; negative inside.

  A lower bound for ellipsoids.
  """
  local = np.einsum(
    'pij,npj->npi', scene.rotation, points[:, None] - scene.centre
  )
  out = np.abs(local) - scene.half
  wall = -out[:, 0].max(-1)
  radius = np.linalg.norm(local[..., :2], axis=-1) - scene.half[:, 0]
  round_ = np.stack([radius, out[..., 2]], -1)
  round_ = np.linalg.norm(np.maximum(round_, 0), axis=-1) + np.minimum(
    round_.max(-1), 0
  )
  box = np.linalg.norm(np.maximum(out, 0), axis=-1) + np.minimum(out.max(-1), 0)
  ball = np.linalg.norm(local / scene.half, axis=-1) - 1
  ball = ball * scene.half.min(-1)
  distance = np.where(
    scene.kind == TUBE, round_, np.where(scene.kind == BOX, box, ball)
  )
  return np.minimum(wall, distance[:, 1:].min(-1))


def first_seen(scene: Scene, origins: np.ndarray, directions: np.ndarray):
  """Roughly what unit rays [N, 3] meet: distances [N] and groups [N].

  Takes every primitive for its bounding box.
  """
  o = np.einsum('pij,npj->ipn', scene.rotation, origins[:, None] - scene.centre)
  d = np.einsum('pij,nj->ipn', scene.rotation, directions)
  half = scene.half.T[..., None]
  with np.errstate(all='ignore'):
    t = _hit(BOX, o[:, 1:], d[:, 1:], half[:, 1:])
    room = _leave_room(o[:, :1], d[:, :1], half[:, :1])
  t = np.concatenate([room, t])
  nearest = t.argmin(0)
  return t.min(0), scene.group[nearest]
