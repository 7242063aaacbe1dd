"""Pinhole cameras as pure functions on arrays `[..., d]`.

OpenCV axes (x right, y down, z forward); the world's z points up. A pose is
world-to-camera `[R|t]`, `[..., 3, 4]`. Intrinsics are (fx, fy, cx, cy) divided
by the image's width and height, so an image spans 0..1 and its centre is 0.5.
Every function takes `xnp`, NumPy by default, and also runs in JAX.
"""

from typing import Any

import numpy as np
from jaxtyping import Float


def _dot(a: Any, b: Any, xnp: Any) -> Any:
  """Returns the inner product over the last axis."""
  # Not einsum: on TPU a float32 contraction defaults to bfloat16 inputs.
  return xnp.sum(a * b, axis=-1)


def _rotate(rotation: Any, x: Any, xnp: Any) -> Any:
  """Returns [..., 3, 3] times [..., 3]."""
  return _dot(rotation, x[..., None, :], xnp)


def normalize(x: Float[Any, '*n d'], xnp: Any = np) -> Float[Any, '*n d']:
  """Scales vectors to unit length; zero vectors give NaN."""
  return x / xnp.sqrt(_dot(x, x, xnp))[..., None]


def look_at(
  eye: Float[Any, '*n 3'],
  target: Float[Any, '*n 3'],
  up: Float[Any, '3'],
  xnp: Any = np,
) -> Float[Any, '*n 3 4']:
  """Returns the world-to-camera pose at `eye` with `target` in the centre.

  Args:
    eye: Camera centres in the world.
    target: Points to look at; must differ from `eye`.
    up: World direction that points up in the image; must not be parallel to
      the line of sight.
    xnp: numpy or jax.numpy.
  """
  forward = normalize(target - eye, xnp)
  # Explicit, because the tests disable rank promotion in JAX.
  up = xnp.broadcast_to(up, forward.shape)
  right = normalize(xnp.cross(forward, up), xnp)
  down = xnp.cross(forward, right)
  rotation = xnp.stack([right, down, forward], axis=-2)
  translation = -_rotate(rotation, eye, xnp)
  return xnp.concatenate([rotation, translation[..., None]], axis=-1)


def invert_pose(
  pose: Float[Any, '*n 3 4'], xnp: Any = np
) -> Float[Any, '*n 3 4']:
  """Inverts a rigid pose: world-to-camera becomes camera-to-world."""
  rotation = xnp.swapaxes(pose[..., :3], -1, -2)
  translation = -_rotate(rotation, pose[..., 3], xnp)
  return xnp.concatenate([rotation, translation[..., None]], axis=-1)


def compose(
  a: Float[Any, '*n 3 4'], b: Float[Any, '*n 3 4'], xnp: Any = np
) -> Float[Any, '*n 3 4']:
  """Returns the pose that applies `b` first and `a` second."""
  columns = xnp.swapaxes(b, -1, -2)
  moved = _rotate(a[..., None, :, :3], columns, xnp)
  product = xnp.swapaxes(moved, -1, -2)
  return xnp.concatenate(
    [product[..., :3], product[..., 3:] + a[..., 3:]], axis=-1
  )


def relative_to(
  poses: Float[Any, '*n 3 4'], start: Float[Any, '*#n 3 4'], xnp: Any = np
) -> Float[Any, '*n 3 4']:
  """Returns world-to-camera poses in the coordinates of the camera `start`."""
  origin = xnp.broadcast_to(invert_pose(start, xnp), poses.shape)
  return compose(poses, origin, xnp)


def transform(
  pose: Float[Any, '*n 3 4'], points: Float[Any, '*n 3'], xnp: Any = np
) -> Float[Any, '*n 3']:
  """Applies poses to points of the same leading shape."""
  return _rotate(pose[..., :3], points, xnp) + pose[..., 3]


def camera_centre(
  world_to_camera: Float[Any, '*n 3 4'], xnp: Any = np
) -> Float[Any, '*n 3']:
  """Returns the positions of the cameras in the world."""
  return invert_pose(world_to_camera, xnp)[..., 3]


def centre_crop(
  height: int, width: int, shape: tuple[int, int] = (1, 1)
) -> tuple[int, int, int, int]:
  """Returns the largest central rectangle of an image with an aspect ratio.

  Args:
    height: Pixels of the image.
    width: Pixels of the image.
    shape: Height and width whose ratio the rectangle has, to the nearest pixel;
      a square by default.

  Returns:
    The rectangle's top, left, height and width in pixels.
  """
  if height * shape[1] <= width * shape[0]:
    rows, columns = height, _divide(height * shape[1], shape[0])
  else:
    rows, columns = _divide(width * shape[0], shape[1]), width
  return (height - rows) // 2, (width - columns) // 2, rows, columns


def _divide(a: int, b: int) -> int:
  """Returns the rounded quotient of positive integers, at least 1."""
  return max((2 * a + b) // (2 * b), 1)


def crop_intrinsics(
  intrinsics: Float[Any, '*n 4'],
  height: int,
  width: int,
  xnp: Any = np,
  *,
  shape: tuple[int, int] = (1, 1),
) -> Float[Any, '*n 4']:
  """Returns the intrinsics of the central rectangle of an image.

  The rectangle is exactly that of `centre_crop` and
  `data.images.centre_crop_resize`, for an image of `height` x `width`.
  Normalised intrinsics do not depend on a later resize.
  """
  top, left, rows, columns = centre_crop(height, width, shape)
  scale = xnp.asarray([width / columns, height / rows], intrinsics.dtype)
  first = xnp.asarray([left / columns, top / rows], intrinsics.dtype)
  scale = xnp.broadcast_to(scale, (*intrinsics.shape[:-1], 2))
  return xnp.concatenate(
    [
      intrinsics[..., :2] * scale,
      intrinsics[..., 2:] * scale - xnp.broadcast_to(first, scale.shape),
    ],
    axis=-1,
  )


def quarter_turn(
  intrinsics: Float[np.ndarray, '4'], world_to_camera: Float[np.ndarray, '3 4']
) -> tuple[Float[np.ndarray, '4'], Float[np.ndarray, '3 4']]:
  """Returns the camera of a picture turned anticlockwise, as by `np.rot90`.

  Args:
    intrinsics: Normalised intrinsics of the picture before the turn.
    world_to_camera: Pose before the turn.

  Returns:
    Normalised intrinsics and pose after the turn.
  """
  fx, fy, cx, cy = intrinsics
  turn = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
  return np.array([fy, fx, cy, 1 - cx]), turn @ world_to_camera


def rays_through(
  uv: Float[Any, '*n 2'],
  intrinsics: Float[Any, '*n 4'],
  world_to_camera: Float[Any, '*n 3 4'],
  xnp: Any = np,
) -> tuple[Float[Any, '*n 3'], Float[Any, '*n 3']]:
  """Returns world rays through image coordinates, one camera per point.

  Args:
    uv: Coordinates, 0..1 inside the image; pixel centres are at
      (column + 0.5) / width.
    intrinsics: Normalised intrinsics.
    world_to_camera: Poses.
    xnp: numpy or jax.numpy.

  Returns:
    Origins (the cameras' centres) and unit directions.
  """
  xy = (uv - intrinsics[..., 2:]) / intrinsics[..., :2]
  local = xnp.concatenate([xy, xnp.ones_like(xy[..., :1])], axis=-1)
  pose = invert_pose(world_to_camera, xnp)
  return pose[..., 3], _rotate(pose[..., :3], normalize(local, xnp), xnp)


def pixel_rays(
  intrinsics: Float[Any, '*n 4'],
  world_to_camera: Float[Any, '*n 3 4'],
  height: int,
  width: int,
  xnp: Any = np,
) -> tuple[
  Float[Any, '*n {height} {width} 3'], Float[Any, '*n {height} {width} 3']
]:
  """Returns world rays through the centres of all pixels.

  Returns:
    Origins (the camera's centre, repeated) and unit directions.
  """
  u = (xnp.arange(width, dtype=intrinsics.dtype) + 0.5) / width
  v = (xnp.arange(height, dtype=intrinsics.dtype) + 0.5) / height
  shape = (*intrinsics.shape[:-1], height, width)
  uv = xnp.stack(xnp.meshgrid(u, v), axis=-1)
  return rays_through(
    xnp.broadcast_to(uv, (*shape, 2)),
    xnp.broadcast_to(intrinsics[..., None, None, :], (*shape, 4)),
    xnp.broadcast_to(world_to_camera[..., None, None, :, :], (*shape, 3, 4)),
    xnp,
  )


def project(
  points: Float[Any, '*n 3'],
  intrinsics: Float[Any, '*n 4'],
  world_to_camera: Float[Any, '*n 3 4'],
  xnp: Any = np,
) -> tuple[Float[Any, '*n 2'], Float[Any, '*n']]:
  """Projects world points, one camera per point.

  Returns:
    Image coordinates (0..1 inside the image; meaningless if the depth is not
    positive) and z-depth.
  """
  local = transform(world_to_camera, points, xnp)
  depth = local[..., 2]
  xy = local[..., :2] / depth[..., None]
  return xy * intrinsics[..., :2] + intrinsics[..., 2:], depth
