"""Explicit poses as the vectors that networks tell, and the rays they make.

A vector of `DIM` numbers says where a view is relative to the reference: what
is added to the identity's first two rows (a rotation by Gram-Schmidt: Zhou et
al., CVPR 2019), the translation, and the logarithm of the focal length over the
default. So zero is the reference itself, seen through a default lens.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from xfactor.geometry import cameras

DIM = 10
# By the image's width: a field of view of 53 degrees.
FOCAL = 1.0
# Numbers of a pixel's ray in Pluecker coordinates.
RAY = 6


def world_to_camera(
  poses: Float[Array, '*b 10'],
) -> Float[Array, '*b 3 4']:
  """Rigid poses in the reference camera's coordinates."""
  identity = jnp.eye(2, 3, dtype=poses.dtype)
  rows = poses[..., :6].reshape(*poses.shape[:-1], 2, 3)
  rows = rows + jnp.broadcast_to(identity, rows.shape)
  x = _unit(rows[..., 0, :])
  y = rows[..., 1, :]
  y = _unit(y - jnp.sum(x * y, -1, keepdims=True) * x)
  rotation = jnp.stack([x, y, jnp.cross(x, y)], -2)
  return jnp.concatenate([rotation, poses[..., 6:9, None]], -1)


def _unit(x: Array) -> Array:
  # Not of length zero, where a gradient would not be finite.
  return x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-12)


def plucker_patches(
  poses: Float[Array, 'b v 10'],
  positions: Int[Array, '#b t 2'],
  grid: tuple[int, int],
  size: int,
) -> Float[Array, 'b v t r']:
  """Rays (direction, moment) through the pixels of patches.

  The lens is that of the last view, the target's: all views share one.

  Args:
    poses: Of each view.
    positions: (row, column) of each patch.
    grid: Rows and columns of patches in a view.
    size: Pixels along a patch's side.

  Returns:
    Of each patch `RAY` numbers for each of its pixels, row by row.
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
