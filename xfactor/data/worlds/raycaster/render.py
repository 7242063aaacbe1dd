"""Vectorised ray caster for rooms made of boxes, tubes and ellipsoids.

Two passes render a frame in milliseconds. `lighting.bake` lights a static scene
once: every face of every primitive gets a small light map (soft shadows,
ambient occlusion, one bounce). `render` then finds the nearest primitive of
each ray, testing a primitive only inside its screen rectangle, and looks up a
mip-mapped texture and the light map; small frames are batched. Surfaces are
Lambertian, so a point looks the same from every view, as novel-view synthesis
assumes in its simplest form.

Units are metres with z up; colours are linear; float32 throughout.
"""

from collections.abc import Iterator

import numpy as np

from xfactor.data.worlds.raycaster import lighting, shading, tracing
from xfactor.data.worlds.raycaster import scene as scene_lib

# Pairs of corners of a box, in the order of `scene.corners`, for each edge.
_EDGES = np.array(
  [(i, i | bit) for bit in (1, 2, 4) for i in range(8) if not i & bit]
).T

# Samples of the frames rendered together, so that there are few calls for each
# primitive, and samples of a block, so that arrays stay in the cache.
_TILE_SAMPLES = 320_000
_BLOCK_SAMPLES = 20_000


def _rectangles(corners, world_to_camera, intrinsics, size: int):
  """Returns the rectangles of pixels that can show each primitive.

  Args:
    corners: [P, 8, 3] world corners of the primitives.
    world_to_camera: [F, 3, 4] camera poses.
    intrinsics: [F, 4] normalised intrinsics.
    size: Height and width of the frames.

  Returns:
    Four integer arrays [F, P]: x0, x1, y0, y1.
  """
  pose = world_to_camera.transpose(1, 2, 0)[:, :, None, :, None]
  world = corners.transpose(2, 1, 0)[:, :, None]
  x, y, z = (tracing.dot3(row, world) + row[3] for row in pose)
  near, nearest = 0.05, scene_lib.f32(1e-3)
  behind = z < near
  crosses = behind.any(0)
  hidden = behind.all(0)
  crosses &= ~hidden
  # Boxes that extend behind the camera are clipped: use the corners in front,
  # and the points where edges cross the near plane.
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
    # Samples are at least an eighth of a pixel away from a pixel's edges.
    low, high = np.ceil(low) - 1, np.floor(high) + 1
    high[hidden] = 0
    bounds += [np.clip(v, 0, size).astype(np.intp) for v in (low, high)]
  return bounds


def _blocks(count: int, size: int):
  """Divides frames into blocks of at most about `_BLOCK_SAMPLES` samples.

  Args:
    count: Number of frames.
    size: Height and width of the frames.

  Yields:
    Slices of frames and of rows.
  """
  rows = max(1, _BLOCK_SAMPLES // (len(lighting.SAMPLES) * size))
  frames = max(1, rows // size)
  for first in range(0, count, frames):
    for top in range(0, size, rows):
      yield slice(first, first + frames), slice(top, min(size, top + rows))


def _windows(x0, x1, y0, y1, size: int):
  """Groups the frames that see a primitive by its size in pixels.

  Args:
    x0, x1, y0, y1: [F], see `_rectangles`.
    size: Height and width of the frames.

  Yields:
    Frames [G], corners x [G] and y [G], and the width and height of windows
    inside the frames; together the windows cover the rectangles.
  """
  width, height = x1 - x0, y1 - y0
  left = np.flatnonzero((width > 0) & (height > 0))
  while len(left):
    w, h = width[left], height[left]
    # Windows below half of the largest area are left for the next round.
    large = 2 * w * h >= (w * h).max()
    some = left[large]
    w, h = int(w[large].max()), int(h[large].max())
    x, y = np.minimum(x0[some], size - w), np.minimum(y0[some], size - h)
    rows = max(1, _BLOCK_SAMPLES // (len(lighting.SAMPLES) * w))
    step = max(1, rows // h)
    for first in range(0, len(some), step):
      f = slice(first, first + step)
      for top in range(0, h, rows):
        yield some[f], x[f], y[f] + top, w, min(rows, h - top)
    left = left[~large]


def _visible(scene, corners, intrinsics, world_to_camera, size: int):
  """Finds the nearest primitive and the z-depth of every sample.

  Returns:
    Depth [F, S, H, W], primitive [F, S, H, W], the samples' x [F, S, 1, W] and
    y [F, S, H, 1] on the plane at depth 1, and camera centres [F, 3].
  """
  fx, fy, cx, cy = intrinsics.T[:, :, None, None]
  grid = (
    np.arange(size, dtype=scene_lib.f32)
    + scene_lib.f32(0.5)
    + lighting.SAMPLES.T[:, :, None]
  )
  xs = (grid[0] / size - cx) / fx
  ys = (grid[1] / size - cy) / fy
  camera_axes = world_to_camera[:, :, :3]
  eye = np.stack([-m[:, :3].T @ m[:, 3] for m in world_to_camera])
  # Rays in a primitive's axes are linear in x and y: two sums per axis.
  axes = scene.rotation[:, None] @ camera_axes.swapaxes(1, 2)
  origins = np.stack(
    [np.einsum('pij,pj->pi', scene.rotation, e - scene.centre) for e in eye], -1
  )
  boxes = _rectangles(corners, world_to_camera, intrinsics, size)

  def rays(a, xs, ys):
    a = a.transpose(2, 1, 0)[..., None, None, None]
    return xs * a[0] + (ys * a[1] + a[2])

  depth = np.empty((len(eye), len(lighting.SAMPLES), size, size), scene_lib.f32)
  for f, y in _blocks(len(eye), size):
    depth[f, :, y] = tracing.leave_room(
      origins[0][:, f, None, None, None],
      rays(axes[0][f], xs[f, :, None], ys[f, :, y, None]),
      scene.half[0],
    )
  primitive = np.zeros(depth.shape, np.int32)
  flat_depth, flat_primitive = depth.reshape(-1), primitive.reshape(-1)
  samples = np.arange(len(lighting.SAMPLES))[:, None]
  span = np.arange(size)
  for p in range(1, len(scene.kind)):
    corner = (box[:, p] for box in boxes)
    for frames, x0, y0, w, h in _windows(*corner, size):
      line = (frames * (len(samples) * size))[:, None, None]
      inside = samples * size + span
      t, met = tracing.hit(
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


def render(
  baked: scene_lib.Baked,
  intrinsics: np.ndarray,
  world_to_camera: np.ndarray,
  size: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Renders frames, several at once if they are small.

  Args:
    baked: The lit scene.
    intrinsics: float32 [N, 4], normalised.
    world_to_camera: float32 [N, 3, 4]; cameras are outside all objects.
    size: Height and width in pixels.

  Yields:
    sRGB uint8 [size, size, 3], anti-aliased, and float32 [size, size] z-depth
    through the pixels' centres.
  """
  if len(intrinsics) != len(world_to_camera):
    raise ValueError(
      f'{len(intrinsics)} intrinsics, {len(world_to_camera)} poses'
    )
  corners = scene_lib.corners(baked.scene)
  tables = shading.Tables(baked)
  samples = len(lighting.SAMPLES) * size * size
  step = max(1, _TILE_SAMPLES // samples)
  for start in range(0, len(intrinsics), step):
    some = slice(start, start + step)
    with np.errstate(all='ignore'):
      frames = _render(
        baked, tables, corners, intrinsics[some], world_to_camera[some], size
      )
    yield from zip(*frames, strict=True)


def _render(baked, tables, corners, intrinsics, world_to_camera, size: int):
  """Returns frames [F, size, size, 3] and depth [F, size, size]."""
  depth, primitive, xs, ys, eye = _visible(
    baked.scene, corners, intrinsics, world_to_camera, size
  )
  xs, ys = xs[:, :, None], ys[..., None]
  pixel = (0.6 / (intrinsics[:, 0] * size)).astype(scene_lib.f32)
  rgb = np.empty((len(eye), size, size, 3), np.uint8)
  for f, y in _blocks(len(eye), size):
    linear = shading.shade(
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
      # The centre has half the weight, so that the weights resemble a tent.
      pixels = (c[:, 0] / 2 + c[:, 1:].sum(1)) / scene_lib.f32(4.5)
      value = np.clip(pixels, 0, 1) ** scene_lib.f32(1 / 2.2)
      rgb[f, y, :, channel] = value * 255 + scene_lib.f32(0.5)
  return rgb, depth[:, 0].copy()


def clearance(scene: scene_lib.Scene, points: np.ndarray) -> np.ndarray:
  """Returns distances [N] of points to the nearest surface; negative inside.

  The distance is a lower bound for ellipsoids.
  """
  local = np.einsum(
    'pij,npj->npi', scene.rotation, points[:, None] - scene.centre
  )
  # Separate arrays [N, P], since reductions over an axis of three are slow.
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
    scene.kind == scene_lib.TUBE,
    tube,
    np.where(scene.kind == scene_lib.BOX, box, ball),
  )
  return np.minimum(wall, distance[:, 1:].min(-1))


def _length(x):
  """Returns the lengths of vectors given as three arrays."""
  return np.sqrt(x[0] * x[0] + x[1] * x[1] + x[2] * x[2])


def first_seen(
  scene: scene_lib.Scene, origins: np.ndarray, directions: np.ndarray
):
  """Returns approximate hits of unit rays [N, 3]: distances and groups [N].

  Every primitive is replaced by its bounding box.
  """
  o = np.einsum('pij,npj->ipn', scene.rotation, origins[:, None] - scene.centre)
  d = np.einsum('pij,nj->ipn', scene.rotation, directions)
  half = scene.half.T[..., None]
  with np.errstate(all='ignore'):
    t, met = tracing.hit(scene_lib.BOX, o[:, 1:], d[:, 1:], half[:, 1:])
    room = tracing.leave_room(o[:, :1], d[:, :1], half[:, :1])
  t = np.concatenate([room, np.where(met, t, scene_lib.FAR)])
  nearest = t.argmin(0)
  return t.min(0), scene.group[nearest]
