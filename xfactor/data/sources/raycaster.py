"""A small vectorised ray caster for rooms made of boxes, tubes and ellipsoids.

Two passes, so that a frame costs milliseconds. `bake` lights a static scene
once: every face of every primitive gets a small light map (soft shadows,
ambient occlusion, one bounce). `render` then finds the nearest primitive of
each ray inside the primitive's screen rectangle only, and looks up a mip-mapped
texture and the light map; it takes small frames together. Surfaces are
Lambertian, so a point looks the same from everywhere, as novel-view synthesis
assumes in its simplest form.

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


def _inverse(d):
  """1 / d of rays' directions `d`, finite where they are 0."""
  inverse = 1 / d
  # Rays along a slab would give infinity less infinity.
  return np.minimum(inverse, _f32(1e9), out=inverse)


def _like(half, rays):
  """`half` with trailing axes of 1 to as many axes as `rays`."""
  return half.reshape(half.shape + (1,) * (rays.ndim - half.ndim))


def _slabs(o, inverse, half):
  """Ray parameters where rays enter and leave slabs |x| < half.

  Args:
    o: [K, ...] origins, for K slabs.
    inverse: [K, ...] of the directions.
    half: [K] or [K, ...].
  """
  middle = inverse * -o
  reach = np.abs(inverse)
  reach *= _like(half, reach)
  near = middle - reach
  middle += reach
  return near, middle


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


def _hit(kind: int, o, d, half):
  """Where rays meet a convex primitive.

  Args:
    kind: BOX, TUBE or ELLIPSOID.
    o: [3, ...] origins along the primitive's axes.
    d: [3, ...] directions.
    half: [3] or [3, ...] half extents.

  Returns:
    The nearest parameter, 0 for a ray that starts inside, and whether the ray
    meets the primitive at all.
  """
  if kind == BOX:
    near, far = _slabs(o, _inverse(d), half)
    near = np.maximum(np.maximum(near[0], near[1]), near[2])
    far = np.minimum(np.minimum(far[0], far[1]), far[2])
  else:
    axes = 2 if kind == TUBE else 3
    half = _like(half, d)
    e, f = o[:axes] / half[:axes], d[:axes] / half[:axes]
    near, far = _quadric(
      (f * f).sum(0), (e * f).sum(0), (e * e).sum(0) - _f32(1)
    )
    if kind == TUBE:
      enter, leave = _slabs(o[2:], _inverse(d[2:]), half[2:])
      np.maximum(near, enter[0], out=near)
      np.minimum(far, leave[0], out=far)
  np.maximum(near, 0, out=near)
  return near, near < far


def _leave_room(o, d, half) -> np.ndarray:
  """Parameter at which rays from inside a box meet its walls."""
  _, far = _slabs(o, _inverse(d), half)
  return np.minimum(np.minimum(far[0], far[1]), far[2])


def _corners(scene: Scene) -> np.ndarray:
  """World corners [P, 8, 3] of the primitives' own bounding boxes."""
  signs = np.stack(np.meshgrid(*[[-1, 1]] * 3, indexing='ij'), -1)
  local = signs.reshape(1, 8, 3).astype(_f32) * scene.half[:, None]
  return scene.centre[:, None] + local @ scene.rotation


def _dot3(m, x):
  """Row `m` [3] times planes `x` [3, M], without a matrix library."""
  return m[0] * x[0] + m[1] * x[1] + m[2] * x[2]


def _turned(m, x):
  """Matrix `m` [3, 3] times `x` [3, M], without a matrix library."""
  return m[:, :1] * x[0] + m[:, 1:2] * x[1] + m[:, 2:] * x[2]


@dataclasses.dataclass(frozen=True)
class _Group:
  """Primitives of one object.

  Attributes:
    low: [3, 1] of its bounding box along the world's axes.
    high: [3, 1]
    turn: [3, 3] from world to its own axes.
    middle: [3, 1] of its bounding box along its own axes.
    half: [3] of this box.
    parts: Kind, centre [3, 1] along its axes, half extents [3] of a primitive
      and its rotation against the object's, None if there is none.
  """

  low: np.ndarray
  high: np.ndarray
  turn: np.ndarray
  middle: np.ndarray
  half: np.ndarray
  parts: list[tuple[int, np.ndarray, np.ndarray, np.ndarray | None]]


_RUN = 16  # Rays that are boxed in together.


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
          # A millimetre more: these boxes need not be exact.
          low=world.min(0)[:, None] - _f32(1e-3),
          high=world.max(0)[:, None] + _f32(1e-3),
          turn=turn,
          middle=((low + high) / 2)[:, None],
          half=(high - low) / 2,
          parts=parts,
        )
      )

  def nearest(self, origins: np.ndarray, directions: np.ndarray):
    """Parameters [M], at most 1, of planes of rays [3, M]."""
    count = origins.shape[1]
    best = np.ones(count, _f32)
    # Most rays end before they come near an object. Neighbours are boxed in
    # together.
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
      t, met = _hit(BOX, o - group.middle, d, group.half)
      inside = np.flatnonzero(met & (t < found))
      if not len(inside):
        continue
      some, found = some.take(inside), found.take(inside)
      o, d = o.take(inside, 1), d.take(inside, 1)
      for kind, centre, half, rest in group.parts:
        e, f = o - centre, d
        if rest is not None:
          e, f = _turned(rest, e), _turned(rest, d)
        t, met = _hit(kind, e, f, half)
        np.minimum(found, t, out=found, where=met)
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


def _direct(tracer, texels, lights, samples: int) -> np.ndarray:
  """Light [M, 3] that reaches each light texel straight from a lamp or the sun.

  All rays are traced together: few calls, each of many rays.
  """
  direct = np.zeros((len(texels.chart), 3), _f32)
  lifted = texels.position + _f32(0.015) * texels.normal
  draws = [_pattern(texels, sample, samples) for sample in range(samples)]
  rays = []
  for light in lights:
    shine = _lamplight if light.sun is None else _sunshine
    for a, b in draws:
      to_light, share = shine(light, lifted, texels.normal, a, b)
      lit = np.flatnonzero(share > 0.003)
      rays.append((lit, share.take(lit), to_light.take(lit, 1)))
  if not rays:
    return direct
  t = tracer.nearest(
    np.concatenate([lifted.take(lit, 1) for lit, *_ in rays], 1),
    np.concatenate([to_light for *_, to_light in rays], 1),
  )
  ends = np.cumsum([len(lit) for lit, *_ in rays])
  free = np.split(t >= 1, ends[:-1])
  for i, light in enumerate(lights):
    total = np.zeros(len(texels.chart), _f32)
    for j in range(i * samples, (i + 1) * samples):
      lit, share, _ = rays[j]
      total[lit] += share * free[j]
    direct += (total / _f32(samples))[:, None] * light.colour
  return direct


def _lamplight(light: Light, position, normal, a, b):
  """Rays to a lamp and the share of its colour that arrives unless shadowed."""
  to_light = light.centre[:, None] - position
  to_light += light.u[:, None] * a + light.v[:, None] * b
  square = (to_light * to_light).sum(0)
  cosine = (to_light * normal).sum(0)
  # The 0.3 keeps what stands close to a lamp from burning out.
  share = np.maximum(cosine, 0) / np.sqrt(square) / (square + _f32(0.3))
  if light.normal.any():
    emitted = -_dot3(light.normal, to_light) / np.sqrt(square)
    share = share * np.maximum(emitted, 0)
  return to_light, share


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
  directions = []
  for sample in range(samples):
    a, b = _pattern(texels, sample, samples)
    angle = _f32(np.pi) * a
    sine = np.sqrt((b + 1) / 2)
    cosine = np.sqrt(np.maximum(1 - sine * sine, 0.01))
    rays = normal * cosine + side * (sine * np.cos(angle))
    directions.append((rays + other * (sine * np.sin(angle))) * reach)
  t = tracer.nearest(
    np.tile(lifted, samples), np.concatenate(directions, 1)
  ).reshape(samples, -1)
  total = np.zeros(len(texels.chart), _f32)
  inside = lifted - scene.centre[0][:, None]
  for found, rays in zip(t, directions, strict=True):
    np.minimum(found, _leave_room(inside, rays, scene.half[0]), out=found)
    total += np.clip(found, 0, 1)
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
  direct = _direct(tracer, texels, scene.lights, samples)
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


# Pairs of a box's corners, as of `_corners`, that an edge joins.
_EDGES = np.array(
  [(i, i | bit) for bit in (1, 2, 4) for i in range(8) if not i & bit]
).T

# Frames that are drawn together have about so many samples, so that the calls
# of a primitive are few for each frame; and so many are worked on at once, so
# that arrays stay in the cache.
_TILE_SAMPLES = 320_000
_BLOCK_SAMPLES = 20_000


def _rectangles(corners, world_to_camera, intrinsics, size: int):
  """Pixels outside which no primitive can be seen.

  Args:
    corners: [P, 8, 3].
    world_to_camera: [F, 3, 4].
    intrinsics: [F, 4].
    size: Of the frames.

  Returns:
    Four integer arrays [F, P]: x0, x1, y0, y1.
  """
  pose = world_to_camera.transpose(1, 2, 0)[:, :, None, :, None]
  world = corners.transpose(2, 1, 0)[:, :, None]
  x, y, z = (_dot3(row, world) + row[3] for row in pose)
  near, nearest = 0.05, _f32(1e-3)
  behind = z < near
  crosses = behind.any(0)
  hidden = behind.all(0)
  crosses &= ~hidden
  # What lies on both sides of the eye is cut there: its corners in front, and
  # where its edges pass.
  cut = [c[:, crosses] for c in (x, y, z)]
  a, b = ([c[end] for c in cut] for end in _EDGES)
  share = (nearest - a[2]) / (b[2] - a[2])
  passes = (a[2] < nearest) != (b[2] < nearest)
  bounds = []
  for axis, c in enumerate((x, y)):
    focal = intrinsics[:, axis, None] * size
    centre = intrinsics[:, axis + 2, None] * size
    c = c / z * focal + centre
    low, high = c.min(0), c.max(0)
    if crosses.any():
      f, m = (
        np.broadcast_to(k, crosses.shape)[crosses] for k in (focal, centre)
      )
      ends = np.concatenate(
        [
          cut[axis] / cut[2],
          (a[axis] + share * (b[axis] - a[axis])) / nearest,
        ]
      )
      ends = ends * f + m
      seen = np.concatenate([cut[2] >= nearest, passes])
      low[crosses] = np.where(seen, ends, np.inf).min(0)
      high[crosses] = np.where(seen, ends, -np.inf).max(0)
    # A pixel's samples keep an eighth of a pixel from its edges.
    low, high = np.ceil(low) - 1, np.floor(high) + 1
    high[hidden] = 0
    bounds += [np.clip(v, 0, size).astype(np.intp) for v in (low, high)]
  return bounds


def _blocks(count: int, size: int):
  """Cuts frames to blocks of at most `_BLOCK_SAMPLES` samples, if possible.

  Args:
    count: Of the frames.
    size: Of the frames.

  Yields:
    Slices of frames and of rows.
  """
  rows = max(1, _BLOCK_SAMPLES // (len(_SAMPLES) * size))
  frames = max(1, rows // size)
  for first in range(0, count, frames):
    for top in range(0, size, rows):
      yield slice(first, first + frames), slice(top, min(size, top + rows))


def _windows(x0, x1, y0, y1, size: int):
  """Groups the frames that see a primitive by how large it is there.

  Args:
    x0, x1, y0, y1: [F], see `_rectangles`.
    size: Of the frames.

  Yields:
    Frames [G], corners x [G] and y [G], and the width and height of windows
    inside the frames; all that are yielded together cover the rectangles.
  """
  width, height = x1 - x0, y1 - y0
  left = np.flatnonzero((width > 0) & (height > 0))
  while len(left):
    w, h = width[left], height[left]
    # Those of less than half the largest's pixels come next.
    large = 2 * w * h >= (w * h).max()
    some = left[large]
    w, h = int(w[large].max()), int(h[large].max())
    x, y = np.minimum(x0[some], size - w), np.minimum(y0[some], size - h)
    rows = max(1, _BLOCK_SAMPLES // (len(_SAMPLES) * w))
    step = max(1, rows // h)
    for first in range(0, len(some), step):
      f = slice(first, first + step)
      for top in range(0, h, rows):
        yield some[f], x[f], y[f] + top, w, min(rows, h - top)
    left = left[~large]


def _visible(scene, corners, intrinsics, world_to_camera, size: int):
  """Nearest primitive and z-depth of every sample.

  Returns:
    Depth [F, S, H, W], primitive [F, S, H, W], the samples' x [F, S, 1, W] and
    y [F, S, H, 1] on the plane at depth 1, and the eyes [F, 3].
  """
  fx, fy, cx, cy = intrinsics.T[:, :, None, None]
  grid = np.arange(size, dtype=_f32) + _f32(0.5) + _SAMPLES.T[:, :, None]
  xs = (grid[0] / size - cx) / fx
  ys = (grid[1] / size - cy) / fy
  camera_axes = world_to_camera[:, :, :3]
  eye = np.stack([-m[:, :3].T @ m[:, 3] for m in world_to_camera])
  # Rays in a primitive's axes are linear in x and y: two sums an axis.
  axes = scene.rotation[:, None] @ camera_axes.swapaxes(1, 2)
  origins = np.stack(
    [np.einsum('pij,pj->pi', scene.rotation, e - scene.centre) for e in eye], -1
  )
  boxes = _rectangles(corners, world_to_camera, intrinsics, size)

  def rays(a, xs, ys):
    a = a.transpose(2, 1, 0)[..., None, None, None]
    return xs * a[0] + (ys * a[1] + a[2])

  depth = np.empty((len(eye), len(_SAMPLES), size, size), _f32)
  for f, y in _blocks(len(eye), size):
    depth[f, :, y] = _leave_room(
      origins[0][:, f, None, None, None],
      rays(axes[0][f], xs[f, :, None], ys[f, :, y, None]),
      scene.half[0],
    )
  primitive = np.zeros(depth.shape, np.int32)
  flat_depth, flat_primitive = depth.reshape(-1), primitive.reshape(-1)
  samples = np.arange(len(_SAMPLES))[:, None]
  span = np.arange(size)
  for p in range(1, len(scene.kind)):
    corner = (box[:, p] for box in boxes)
    for frames, x0, y0, w, h in _windows(*corner, size):
      line = (frames * (len(samples) * size))[:, None, None]
      inside = samples * size + span
      t, met = _hit(
        int(scene.kind[p]),
        origins[p][:, frames][..., None, None, None],
        rays(
          axes[p][frames],
          xs.take(line + x0[:, None, None] + inside[:, :w])[:, :, None],
          ys.take(line + y0[:, None, None] + inside[:, :h])[..., None],
        ),
        scene.half[p],
      )
      first = frames * (len(samples) * size**2) + y0 * size + x0
      inside = (samples * size + span[:h])[..., None] * size + span[:w]
      place = (first[:, None] + inside.reshape(-1)).reshape(-1)
      met &= t < flat_depth.take(place).reshape(t.shape)
      closer = np.flatnonzero(met)
      place = place.take(closer)
      flat_depth[place] = t.take(closer)
      flat_primitive[place] = p
  return depth, primitive, xs, ys, eye


class _Tables:
  """What is known of a lit scene, by number, one array for each component.

  Attributes:
    rotation: Nine arrays [P].
    half: Three arrays [P].
    curved: bool [P].
    normal: Three arrays [P * 6]; zeros for curved primitives.
    detail: [P * 6].
    repeats: Two arrays [P * 6].
    first: [P * 6] first texel of the light map.
    columns: [P * 6]
    rows: [P * 6]
    start: [P * 6] first texel of the texture.
    light: Three arrays [M].
  """

  def __init__(self, baked: Baked):
    scene = baked.scene

    def planes(table):
      return list(np.ascontiguousarray(table.T))

    self.rotation = planes(scene.rotation.reshape(-1, 9))
    self.half = planes(scene.half)
    self.curved = scene.kind >= TUBE
    normals = np.einsum('fi,pij->pfj', _NORMAL, scene.rotation).reshape(-1, 3)
    normals[np.repeat(self.curved, 6)] = 0
    self.normal = planes(normals)
    self.detail = baked.detail
    self.repeats = planes(baked.repeats)
    self.first, columns, rows, self.start = planes(baked.chart.astype(np.intp))
    self.columns, self.rows = columns, rows
    self.light = planes(baked.light)


def _surface(scene, tables, primitive, offset):
  """Where on its primitive each point lies.

  Args:
    scene: The primitives.
    tables: Of the scene.
    primitive: [M].
    offset: Three [M], points less their primitives' centres.

  Returns:
    Face [M], and place across and along it in 0..1 [M].
  """
  local = [
    _dot3([r.take(primitive) for r in tables.rotation[i : i + 3]], offset)
    for i in (0, 3, 6)
  ]
  half = [h.take(primitive) for h in tables.half]
  # The face is the one the point sticks out of the most.
  out = [np.abs(local[i]) - half[i] for i in range(3)]
  flat = [local[i] / half[i] * _f32(0.5) + _f32(0.5) for i in range(3)]
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
    tube = scene.kind.take(primitive.take(curved)) == TUBE
    radial = (np.sqrt(x * x + y * y) - 1) * half[0].take(curved)
    side = ~tube | (radial > out[2].take(curved))
    some = curved[side]
    angle = np.arctan2(y[side], x[side]) * _f32(0.5 / np.pi)
    across[some] = angle - np.floor(angle)
    along[some] = flat[2].take(some)
    face[some] = _SIDE
    caps = curved[~side]
    across[caps], along[caps] = flat[0].take(caps), flat[1].take(caps)
    face[caps] = 4 + (local[2].take(caps) < 0)
  return face, across, along


def _lookup_light(tables: _Tables, index, across, along):
  """Bilinear light, three [M]; `index` [M] numbers the charts."""
  columns, rows = tables.columns.take(index), tables.rows.take(index)
  x = np.clip(across * columns - _f32(0.5), 0, columns - 1).astype(_f32)
  y = np.clip(along * rows - _f32(0.5), 0, rows - 1).astype(_f32)
  x0, y0 = x.astype(np.int32), y.astype(np.int32)
  fx, fy = x - x0, (y - y0).astype(_f32)
  place = tables.first.take(index) + y0 * columns + x0
  right = place + (x0 + 1 < columns)
  up = columns * (y0 + 1 < rows)
  above, above_right = place + up, right + up
  light = []
  for plane in tables.light:
    # The first step is done in float64.
    lower, upper = plane.take(place), plane.take(above)
    lower += (plane.take(right) - lower) * fx
    upper += (plane.take(above_right) - upper) * fx
    upper -= lower
    upper *= fy
    lower += upper
    light.append(lower)
  return light


def _lookup_texture(baked: Baked, tables, index, across, along, level):
  """Texels [M, 3] of the level (rounded) that a sample's footprint asks for."""
  top = len(baked.level) - 1
  level = np.clip(level, 0, top).astype(np.intp)
  resolution = np.int32(1) << (top - np.arange(top + 1, dtype=np.int32))
  sizes = resolution.astype(_f32).take(level)
  mask = (resolution - 1).take(level)
  u = (across * tables.repeats[0].take(index) * sizes).astype(np.int32)
  v = (along * tables.repeats[1].take(index) * sizes).astype(np.int32)
  u &= mask
  v &= mask
  place = tables.start.take(index) + baked.level.take(level)
  place += v * resolution.take(level) + u
  return baked.texels.take(place, 0)


def _shade(
  baked: Baked, tables, depth, primitive, xs, ys, world_to_camera, eye, pixel
):
  """Exposed colours, three [F, S, H, W], 0..1 and linear.

  Args:
    baked: The lit scene.
    tables: Of it.
    depth: [F, S, H, W].
    primitive: [F, S, H, W].
    xs: [F, S, 1, W], see `_visible`.
    ys: [F, S, H, 1].
    world_to_camera: [F, 3, 4].
    eye: [F, 3].
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
  # Grazing surfaces need a coarser level; the root is a compromise between
  # blur across and shimmer along.
  normal = [n.take(index) for n in tables.normal]
  cosine = _dot3(normal, [r.reshape(-1) for r in ray])
  cosine = np.maximum(np.abs(cosine) / length.reshape(-1), _f32(0.06))
  footprint = (depth * length * pixel[:, None, None, None]).reshape(-1)
  level = np.log2(footprint * footprint / cosine) * _f32(0.5)
  level += tables.detail.take(index)
  # Each sample of a pixel rounds the level differently and is shifted by a
  # part of a texel, which blends levels and texels for the price of one.
  shift = (np.arange(shape[1], dtype=_f32) * 2 % 5 + 0.5) / 5
  level = (level.reshape(shape) + shift[:, None, None]).reshape(-1)
  colour = _lookup_texture(baked, tables, index, across, along, level)
  light = _lookup_light(tables, index, across, along)
  for i, plane in enumerate(light):
    plane *= colour[:, i]
    np.negative(plane, out=plane)
    np.expm1(plane, out=plane)
    np.negative(plane, out=plane)
  return [plane.reshape(shape) for plane in light]


def render(
  baked: Baked,
  intrinsics: np.ndarray,
  world_to_camera: np.ndarray,
  size: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Renders frames, several at once where they are small.

  Args:
    baked: The lit scene.
    intrinsics: float32 [N, 4], normalised.
    world_to_camera: float32 [N, 3, 4]; the eyes are outside all objects.
    size: Height and width in pixels.

  Yields:
    sRGB uint8 [size, size, 3], anti-aliased, and float32 [size, size] z-depth
    through the pixels' centres.
  """
  if len(intrinsics) != len(world_to_camera):
    raise ValueError(
      f'{len(intrinsics)} intrinsics, {len(world_to_camera)} poses'
    )
  corners = _corners(baked.scene)
  tables = _Tables(baked)
  samples = len(_SAMPLES) * size * size
  step = max(1, _TILE_SAMPLES // samples)
  for start in range(0, len(intrinsics), step):
    some = slice(start, start + step)
    with np.errstate(all='ignore'):
      frames = _render(
        baked, tables, corners, intrinsics[some], world_to_camera[some], size
      )
    yield from zip(*frames, strict=True)


def _render(baked, tables, corners, intrinsics, world_to_camera, size: int):
  """Frames [F, size, size, 3] and depth [F, size, size], see `render`."""
  depth, primitive, xs, ys, eye = _visible(
    baked.scene, corners, intrinsics, world_to_camera, size
  )
  xs, ys = xs[:, :, None], ys[..., None]
  pixel = (0.6 / (intrinsics[:, 0] * size)).astype(_f32)
  rgb = np.empty((len(eye), size, size, 3), np.uint8)
  for f, y in _blocks(len(eye), size):
    linear = _shade(
      baked,
      tables,
      depth[f, :, y],
      primitive[f, :, y],
      xs[f],
      ys[f, :, y],
      world_to_camera[f],
      eye[f],
      pixel[f],
    )
    for channel, c in enumerate(linear):
      # The centre counts half, so that the weights resemble a small tent.
      pixels = (c[:, 0] / 2 + c[:, 1:].sum(1)) / _f32(4.5)
      value = np.clip(pixels, 0, 1) ** _f32(1 / 2.2)
      rgb[f, y, :, channel] = value * 255 + _f32(0.5)
  return rgb, depth[:, 0].copy()


def clearance(scene: Scene, points: np.ndarray) -> np.ndarray:
  """Distance [N] from points [N, 3] to the nearest surface; negative inside.

  A lower bound for ellipsoids.
  """
  local = np.einsum(
    'pij,npj->npi', scene.rotation, points[:, None] - scene.centre
  )
  # Planes [N, P]: sums and maxima over three neighbours would be slow.
  local = np.ascontiguousarray(local.transpose(2, 0, 1))
  half = scene.half.T[:, None]
  out = np.abs(local) - half
  most = np.maximum(np.maximum(out[0], out[1]), out[2])
  wall = -most[:, 0]
  side = np.sqrt(local[0] * local[0] + local[1] * local[1]) - half[0]
  beyond, above = np.maximum(side, 0), np.maximum(out[2], 0)
  tube = np.sqrt(beyond * beyond + above * above)
  tube += np.minimum(np.maximum(side, out[2]), 0)
  box = _length(np.maximum(out, 0)) + np.minimum(most, 0)
  ball = (_length(local / half) - 1) * scene.half.min(-1)
  distance = np.where(
    scene.kind == TUBE, tube, np.where(scene.kind == BOX, box, ball)
  )
  return np.minimum(wall, distance[:, 1:].min(-1))


def _length(x):
  """Lengths of vectors given as three arrays."""
  return np.sqrt(x[0] * x[0] + x[1] * x[1] + x[2] * x[2])


def first_seen(scene: Scene, origins: np.ndarray, directions: np.ndarray):
  """Roughly what unit rays [N, 3] meet: distances [N] and groups [N].

  Takes every primitive for its bounding box.
  """
  o = np.einsum('pij,npj->ipn', scene.rotation, origins[:, None] - scene.centre)
  d = np.einsum('pij,nj->ipn', scene.rotation, directions)
  half = scene.half.T[..., None]
  with np.errstate(all='ignore'):
    t, met = _hit(BOX, o[:, 1:], d[:, 1:], half[:, 1:])
    room = _leave_room(o[:, :1], d[:, :1], half[:, :1])
  t = np.concatenate([room, np.where(met, t, _FAR)])
  nearest = t.argmin(0)
  return t.min(0), scene.group[nearest]
