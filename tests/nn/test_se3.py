"""Explicit poses: rotations whatever a network says, rays as of cameras."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xfactor.geometry import cameras
from xfactor.nn import layers, se3


def random_poses(*shape):
  rng = np.random.default_rng(0)
  return jnp.float32(rng.standard_normal((*shape, se3.DIM)))


def test_zero_is_the_reference_itself():
  pose = se3.world_to_camera(jnp.zeros((2, se3.DIM)))
  np.testing.assert_array_equal(pose, np.tile(np.eye(3, 4), (2, 1, 1)))


@pytest.mark.parametrize('scale', [0.01, 1.0, 30.0])
def test_every_vector_is_a_rigid_pose(scale):
  poses = scale * random_poses(500)
  rigid = np.asarray(se3.world_to_camera(poses), np.float64)
  rotation = rigid[..., :3]
  identity = np.tile(np.eye(3), (500, 1, 1))
  np.testing.assert_allclose(
    rotation @ rotation.swapaxes(1, 2), identity, atol=1e-5
  )
  np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)
  np.testing.assert_array_equal(rigid[..., 3], poses[..., 6:9])


def test_every_rigid_pose_has_its_vector():
  """The rows of a rotation, less the identity's, are read as it."""
  eyes = random_poses(20)[:, :3]
  poses = cameras.look_at(
    np.float32(eyes), -np.float32(eyes[::-1]), np.float32([0, 0, 1])
  )
  rows = poses[:, :2, :3] - np.eye(2, 3)
  focal = np.zeros((20, 1))
  told = np.concatenate([rows.reshape(20, 6), poses[:, :, 3], focal], -1)
  found = se3.world_to_camera(jnp.float32(told))
  np.testing.assert_allclose(found, poses, atol=1e-5)


def patches_of_cameras(poses, grid, size):
  """The same, from whole pictures of rays, in the last view's lens."""
  rigid, poses = np.asarray(se3.world_to_camera(poses)), np.asarray(poses)
  height, width = size * grid[0], size * grid[1]
  focal = se3.FOCAL * np.exp(poses[:, -1:, 9])
  focal = np.broadcast_to(focal, poses.shape[:2])
  middle = np.full_like(focal, 0.5)
  # Square pixels: in units of the height the same length is more.
  lens = np.stack([focal, focal * width / height, middle, middle], -1)
  origins, directions = cameras.pixel_rays(lens, rigid, height, width)
  rays = np.concatenate([directions, np.cross(origins, directions)], -1)
  return np.asarray(layers.patchify(jnp.float32(rays), size))


@pytest.mark.slow
@pytest.mark.parametrize('grid', [(4, 4), (2, 6), (4, 2)])
def test_rays_are_those_of_the_pixels(grid):
  poses = 0.5 * random_poses(3, 2)
  found = se3.plucker_patches(
    poses, layers.grid_positions(*grid)[None], grid, 4
  )
  np.testing.assert_allclose(
    found, patches_of_cameras(poses, grid, 4), atol=1e-5
  )


@pytest.mark.slow
def test_some_patches_in_any_order_have_their_own_rays():
  """As the halves that an example is split into."""
  grid, poses = (4, 6), 0.5 * random_poses(2, 3)
  rng = np.random.default_rng(1)
  chosen = np.stack([rng.permutation(24)[:12] for _ in range(2)])
  places = layers.grid_positions(*grid)[chosen]
  found = se3.plucker_patches(poses, places, grid, 4)
  whole = patches_of_cameras(poses, grid, 4)
  want = np.take_along_axis(whole, chosen[:, None, :, None], 2)
  np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.slow
def test_gradients_at_the_reference_are_finite_and_say_something():
  grid = (2, 2)

  def loss(poses):
    places = layers.grid_positions(*grid)[None]
    rays = se3.plucker_patches(poses, places, grid, 2)
    weights = jnp.cos(jnp.arange(rays.size, dtype=jnp.float32))
    return jnp.sum(rays * weights.reshape(rays.shape))

  gradient = np.asarray(jax.grad(loss)(jnp.zeros((1, 2, se3.DIM))))
  assert np.isfinite(gradient).all()
  # Nor the rows' lengths turn anything, nor the second row towards the first.
  assert (gradient[0, 1] != 0).tolist() == [
    *(False, True, True),
    *(False, False, True),
    *(True, True, True),
    True,
  ]
  assert gradient[0, 0, 9] == 0  # The lens is the last view's.
