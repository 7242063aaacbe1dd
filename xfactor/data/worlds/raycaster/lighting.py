"""Bakes light maps and texture pyramids of a scene."""

import dataclasses

import numpy as np

from xfactor.data.worlds.raycaster import scene as scene_lib
from xfactor.data.worlds.raycaster import tracing

# Sample positions in a pixel: its centre, which also gives the depth, and a
# rotated square, which anti-aliases edges of every slope.
SAMPLES = np.array(
  [[0, 0], [-0.38, -0.14], [0.14, -0.38], [0.38, 0.14], [-0.14, 0.38]],
  scene_lib.f32,
)


def _chart_lengths(scene: scene_lib.Scene) -> np.ndarray:
  """Returns the size of each face in metres, across and along, [P, 6, 2]."""
  across = 2 * scene.half @ scene_lib.ACROSS.T
  along = 2 * scene.half @ scene_lib.ALONG.T
  curved = scene.kind >= scene_lib.TUBE
  across[curved, scene_lib.SIDE] = np.pi * scene.half[curved, :2].sum(1)
  return np.stack([across, along], axis=-1)


@dataclasses.dataclass
class _LightTexels:
  """Texels of all light maps, with positions and normals [3, M]."""

  primitive: np.ndarray
  face: np.ndarray
  column: np.ndarray
  row: np.ndarray
  chart: np.ndarray
  position: np.ndarray
  normal: np.ndarray
  area: np.ndarray


def _light_texels(scene: scene_lib.Scene, lengths: np.ndarray):
  """Lays out the charts: a texel every few centimetres on all faces."""
  count = len(scene.kind)
  # Floors show more shadows than ceilings and need more texels.
  density = np.full((count, 6, 1), 9, scene_lib.f32)
  density[:, 5] = 3
  density[0] = 7
  density[0, 4:] = [[4], [10]]
  sizes = np.ceil(lengths * density).astype(np.int64)
  most = np.where(scene.kind == scene_lib.ROOM, 120, 22)[:, None, None]
  sizes = np.clip(sizes, 1, most)
  # Smooth shading of curved faces needs enough texels around them.
  curved = scene.kind >= scene_lib.TUBE
  sizes[curved, scene_lib.SIDE, 0] = np.maximum(
    sizes[curved, scene_lib.SIDE, 0], 8
  )
  sizes[scene.kind == scene_lib.ELLIPSOID, scene_lib.SIDE, 1] = 8
  sizes[curved, 1:4] = 1
  sizes[scene.glow > 0] = 1
  sizes = sizes.reshape(-1, 2)
  texels = sizes.prod(-1)
  first = np.cumsum(texels) - texels
  chart = np.repeat(np.arange(len(sizes)), texels)
  index = np.arange(len(chart)) - first[chart]
  column, row = index % sizes[chart, 0], index // sizes[chart, 0]
  primitive, face = chart // 6, chart % 6
  s = ((column + 0.5) / sizes[chart, 0]).astype(scene_lib.f32)
  t = ((row + 0.5) / sizes[chart, 1]).astype(scene_lib.f32)
  normal = scene_lib.NORMAL[face]
  point = normal + (2 * s - 1)[:, None] * scene_lib.ACROSS[face]
  point += (2 * t - 1)[:, None] * scene_lib.ALONG[face]
  kind = scene.kind[primitive]
  tube = np.flatnonzero((kind == scene_lib.TUBE) & (face == scene_lib.SIDE))
  ball = np.flatnonzero(kind == scene_lib.ELLIPSOID)
  half = scene.half[primitive]
  for some in (tube, ball):
    angle = 2 * scene_lib.f32(np.pi) * s[some]
    z = 2 * t[some] - 1
    radius = np.sqrt(1 - z * z) if some is ball else np.ones_like(z)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    point[some] = np.stack([x, y, z], -1)
    normal[some] = point[some] / half[some]
    if some is tube:
      normal[some, 2] = 0
    normal[some] /= np.linalg.norm(normal[some], axis=-1, keepdims=True)
  normal[kind == scene_lib.ROOM] *= -1
  rotation = scene.rotation[primitive]
  position = scene.centre[primitive] + np.einsum(
    'mji,mj->mi', rotation, point * half
  )
  normal = np.einsum('mji,mj->mi', rotation, normal)
  area = lengths.reshape(-1, 2).prod(-1) / texels
  area = np.where(
    (face == scene_lib.SIDE) | (scene.kind[primitive] < scene_lib.TUBE),
    area[chart],
    0,
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
  """Returns two stratified samples [M] in -1..1 that vary over 3x3 texels.

  Neighbours have different samples, which the blur over 3x3 texels mixes: nine
  times the samples at the cost of one.
  """
  cell = texels.column % 3 + 3 * (texels.row % 3)
  index = (sample * 9 + cell * 4 % 9).astype(scene_lib.f32)
  u = (index + 0.5) / (9 * samples)
  v = (index * scene_lib.f32(0.618034) + 0.25) % 1
  return u * 2 - 1, v * 2 - 1


def _blur(values: np.ndarray, layout: np.ndarray, texels: _LightTexels):
  """Returns means over 3x3 texels inside each chart."""
  first, columns, rows = layout[texels.chart].T
  column, row = texels.column, texels.row
  index = np.arange(len(values))
  for here, count, stride in ((column, columns, 1), (row, rows, columns)):
    before = index - stride * (here > 0)
    after = index + stride * (here + 1 < count)
    values = (values + values[before] + values[after]) / scene_lib.f32(3)
  return values


def _direct(tracer, texels, lights, samples: int) -> np.ndarray:
  """Returns the direct light [M, 3] of lamps and sun at each texel.

  All rays are traced together, since few calls with many rays are faster.
  """
  direct = np.zeros((len(texels.chart), 3), scene_lib.f32)
  lifted = texels.position + scene_lib.f32(0.015) * texels.normal
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
    total = np.zeros(len(texels.chart), scene_lib.f32)
    for j in range(i * samples, (i + 1) * samples):
      lit, share, _ = rays[j]
      total[lit] += share * free[j]
    direct += (total / scene_lib.f32(samples))[:, None] * light.colour
  return direct


def _lamplight(light: scene_lib.Light, position, normal, a, b):
  """Returns rays to a lamp and the unshadowed share of its light."""
  to_light = light.centre[:, None] - position
  to_light += light.u[:, None] * a + light.v[:, None] * b
  square = (to_light * to_light).sum(0)
  cosine = (to_light * normal).sum(0)
  # The 0.3 avoids overexposure close to a lamp.
  share = (
    np.maximum(cosine, 0) / np.sqrt(square) / (square + scene_lib.f32(0.3))
  )
  if light.normal.any():
    emitted = -tracing.dot3(light.normal, to_light) / np.sqrt(square)
    share = share * np.maximum(emitted, 0)
  return to_light, share


def _sunshine(light: scene_lib.Light, position, normal, a, b):
  """Returns rays to the window and the unshadowed share of sunlight."""
  # Twice the angle of the real sun, half a degree, to hide the texels.
  direction = light.sun[:, None] + scene_lib.f32(0.012) * np.stack(
    [a, b, a * b]
  )
  gap = tracing.dot3(light.normal, light.centre[:, None] - position)
  to_light = direction * (gap / tracing.dot3(light.normal, direction))
  offset = position + to_light - light.centre[:, None]
  x = tracing.dot3(light.u, offset) / (light.u @ light.u)
  y = tracing.dot3(light.v, offset) / (light.v @ light.v)
  # The cross in the middle is the window's bars.
  open_ = (np.abs(x) < 0.95) & (np.abs(y) < 0.95)
  open_ &= (np.abs(x) > 0.05) & (np.abs(y) > 0.04)
  cosine = np.maximum(tracing.dot3(light.sun, normal), 0)
  return to_light, np.where(open_ & (gap < 0), cosine, 0).astype(scene_lib.f32)


def _ambient_share(scene, tracer, texels, samples: int) -> np.ndarray:
  """Returns the ambient visibility [M], 0..1, of texels within a metre."""
  reach = scene_lib.f32(1.0)
  normal = texels.normal
  helper = np.where(np.abs(normal[2]) < 0.9, [[0], [0], [1]], [[1], [0], [0]])
  side = np.cross(normal, helper.astype(scene_lib.f32), axis=0)
  side /= np.linalg.norm(side, axis=0)
  other = np.cross(normal, side, axis=0)
  lifted = texels.position + scene_lib.f32(0.015) * normal
  directions = []
  for sample in range(samples):
    a, b = _pattern(texels, sample, samples)
    angle = scene_lib.f32(np.pi) * a
    sine = np.sqrt((b + 1) / 2)
    cosine = np.sqrt(np.maximum(1 - sine * sine, 0.01))
    rays = normal * cosine + side * (sine * np.cos(angle))
    directions.append((rays + other * (sine * np.sin(angle))) * reach)
  t = tracer.nearest(
    np.tile(lifted, samples), np.concatenate(directions, 1)
  ).reshape(samples, -1)
  total = np.zeros(len(texels.chart), scene_lib.f32)
  inside = lifted - scene.centre[0][:, None]
  for found, rays in zip(t, directions, strict=True):
    np.minimum(
      found, tracing.leave_room(inside, rays, scene.half[0]), out=found
    )
    total += np.clip(found, 0, 1)
  return total / scene_lib.f32(samples)


def _bounced(scene, texels, direct: np.ndarray, mean: np.ndarray):
  """Returns ambient light [M, 3], reflected once by the room's six sides."""
  weight = texels.area * (texels.primitive == 0)
  sides = []
  for face in range(6):
    some = np.flatnonzero((texels.face == face) & (weight > 0))
    lit = np.average(direct[some], axis=0, weights=weight[some])
    sides.append(lit * mean[0, face] * scene.tint[0, face])
  sides = np.asarray(sides, scene_lib.f32)
  sides = 0.55 * sides + 0.45 * sides.mean(0)
  # Weights of the sides a normal points at; the squares sum to one.
  share = np.concatenate(
    [np.maximum(texels.normal, 0) ** 2, np.minimum(texels.normal, 0) ** 2]
  )
  share = share[[0, 3, 1, 4, 2, 5]].astype(scene_lib.f32)
  return np.einsum('sm,sc->mc', share, sides)


def _pyramid(albedo: np.ndarray):
  """Returns the mip levels of all textures, by texture, and their offsets."""
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
      / scene_lib.f32(4)
    )
  flat = [level.reshape(len(albedo), -1, 3) for level in levels]
  sizes = np.array([level.shape[1] for level in flat])
  return np.concatenate(flat, 1).reshape(-1, 3), np.cumsum(sizes) - sizes


def add_glowing(
  baked: scene_lib.Baked, scene: scene_lib.Scene
) -> scene_lib.Baked:
  """Adds glowing primitives to a lit scene; they cast no light or shadow.

  Args:
    baked: The lit scene without them.
    scene: The same scene with glowing primitives at the end, and no textures
      that it did not have.
  """
  old = len(baked.scene.kind)
  light = (scene.glow[old:, None, None] * scene.tint[old:]).reshape(-1, 3)
  lengths = _chart_lengths(scene)[old:].reshape(-1, 2)
  chart = np.ones((len(light), 4), np.int32)  # A light texel per face.
  chart[:, 0] += len(baked.light) - 1 + np.arange(len(light))
  chart[:, 3] = scene.texture[old:].reshape(-1)
  chart[:, 3] *= len(baked.texels) // len(scene.albedo)
  detail = np.log2(scene.albedo.shape[1] / lengths).mean(-1)
  added = {
    'light': light,
    'chart': chart,
    'repeats': np.ones_like(lengths),
    'detail': detail,
  }
  return dataclasses.replace(
    baked,
    scene=scene,
    **{
      name: np.concatenate([table, added[name].astype(table.dtype)])
      for name in added
      for table in [getattr(baked, name)]
    },
  )


def bake(scene: scene_lib.Scene, samples: int = 2) -> scene_lib.Baked:
  """Lights a scene.

  Args:
    scene: Scene to light; its first primitive is the room.
    samples: Shadow and ambient rays per light texel; effectively nine times as
      many, because neighbours share them.
  """
  with np.errstate(all='ignore'):
    return _bake(scene, samples)


def _bake(scene: scene_lib.Scene, samples: int) -> scene_lib.Baked:
  lengths = _chart_lengths(scene)
  layout, texels = _light_texels(scene, lengths)
  tracer = tracing.Tracer(scene)
  mean = scene.albedo.mean((1, 2))[scene.texture]
  direct = _direct(tracer, texels, scene.lights, samples)
  openness = _ambient_share(scene, tracer, texels, 2 * samples)[:, None]
  direct = _blur(direct, layout, texels)
  openness = _blur(openness, layout, texels)
  ambient = _bounced(scene, texels, direct, mean)
  # Approximates many bounces; corners get some light from their surroundings.
  light = direct + ambient * 0.8 * (0.1 + 0.9 * openness**2)
  tint = scene.tint.reshape(-1, 3)[texels.chart]
  light *= tint
  radiance = (light * mean.reshape(-1, 3)[texels.chart]).mean(-1)
  average = np.exp(np.average(np.log(radiance + 1e-4), weights=texels.area))
  light *= scene_lib.f32(scene.key / average)
  glowing = scene.glow[texels.primitive] > 0
  light[glowing] = (scene.glow[texels.primitive, None] * tint)[glowing]

  resolution = scene.albedo.shape[1]
  texels_rgb, level = _pyramid(scene.albedo)
  tile = scene.tile[..., None]
  repeats = np.where(tile > 0, lengths / np.maximum(tile, 1e-3), 1)
  curved = scene.kind >= scene_lib.TUBE
  repeats[curved, scene_lib.SIDE, 0] = np.ceil(
    repeats[curved, scene_lib.SIDE, 0]
  )
  detail = np.log2(resolution * repeats / lengths).mean(-1)
  start = scene.texture.reshape(-1, 1) * (len(texels_rgb) // len(scene.albedo))
  return scene_lib.Baked(
    scene=scene,
    light=light.astype(scene_lib.f32),
    chart=np.concatenate([layout, start], axis=1).astype(np.int32),
    repeats=repeats.reshape(-1, 2).astype(scene_lib.f32),
    detail=detail.reshape(-1).astype(scene_lib.f32),
    texels=texels_rgb,
    level=level.astype(np.int32),
  )
