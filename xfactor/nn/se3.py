"""Explicit poses as vectors predicted by networks, and the rays they define.

A vector of `DIM` numbers is the pose of a view relative to the reference: an
offset of the identity's first two rows (a rotation by Gram-Schmidt: Zhou et
al., CVPR 2019), the translation, and the logarithm of the focal length divided
by the default. Zero is the reference itself with the default focal length.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from xfactor.geometry import cameras

DIM = 10
# In image widths: a field of view of 53 degrees.
FOCAL = 1.0
# Pluecker coordinates of a pixel's ray.
RAY = 6


def world_to_camera(
  poses: Float[Array, '*b 10'],
) -> Float[Array, '*b 3 4']:
  """Converts pose vectors to rigid poses relative to the reference."""
  identity = jnp.eye(2, 3, dtype=poses.dtype)
  rows = poses[..., :6].reshape(*poses.shape[:-1], 2, 3)
  rows = rows + jnp.broadcast_to(identity, rows.shape)
  x = _unit(rows[..., 0, :])
  y = rows[..., 1, :]
  y = _unit(y - jnp.sum(x * y, -1, keepdims=True) * x)
  rotation = jnp.stack([x, y, jnp.cross(x, y)], -2)
  return jnp.concatenate([rotation, poses[..., 6:9, None]], -1)


def _unit(x: Array) -> Array:
  # Keeps the gradient finite at length zero.
  return x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-12)


def plucker_patches(
  poses: Float[Array, 'b v 10'],
  positions: Int[Array, '#b t 2'],
  grid: tuple[int, int],
  size: int,
) -> Float[Array, 'b v t r']:
  """Returns the rays (direction, moment) through the pixels of patches.

  All views share the focal length of the last view, the target.

  Args:
    poses: Pose of each view.
    positions: (row, column) of each patch.
    grid: Rows and columns of patches in a view.
    size: Pixels along a patch's side.

  Returns:
    `RAY` numbers for each pixel of each patch, in row-major order.
  """
  batch, views, tokens = *poses.shape[:2], positions.shape[1]
  inside = (jnp.stack(jnp.divmod(jnp.arange(size**2), size), -1) + 0.5) / size
  places = positions[:, :, None] + inside[None, None]
  rows, columns = grid
  uv = jnp.stack([places[..., 1] / columns, places[..., 0] / rows], -1)
  shape = (batch, views, tokens, size**2)
  focal = FOCAL * jnp.exp(poses[:, -1, 9])
  intrinsics = jnp.stack(
    [focal, focal * columns / rows, *2 * [jnp.full_like(focal, 0.5)]], -1
  )
  pose = world_to_camera(poses)[:, :, None, None]
  origins, directions = cameras.rays_through(
    jnp.broadcast_to(uv[:, None], (*shape, 2)),
    jnp.broadcast_to(intrinsics[:, None, None, None], (*shape, 4)),
    jnp.broadcast_to(pose, (*shape, 3, 4)),
    jnp,
  )
  rays = jnp.concatenate([directions, jnp.cross(origins, directions)], -1)
  return rays.reshape(batch, views, tokens, -1)
