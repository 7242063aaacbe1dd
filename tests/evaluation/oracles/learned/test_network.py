"""The pose network: rotations, errors, and that it learns from what it sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xfactor.evaluation.oracles.learned import network

TINY = network.Config(
  image_size=32,
  features=16,
  encoder_layers=1,
  heads=2,
  head_dim=8,
  width=32,
  layers=1,
)


@pytest.fixture(scope='module')
def functional():
  return network.make(TINY)


@pytest.fixture(scope='module')
def params(functional):
  return jax.jit(functional.init)(jax.random.key(0))


@pytest.fixture(scope='module')
def estimate(functional):
  @jax.jit
  def run(params, a, b):
    net = functional.bind(params)
    return net(net.encode(a), net.encode(b))

  return run


def pictures(count, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, 32, 32, 3), np.uint8)


def motion(pose, **changes):
  """The true motion, off as `changes` say."""
  t = pose[:, :, 3]
  length = jnp.linalg.norm(t, axis=-1, keepdims=True)
  values = {
    'rotation': pose[:, :, :3],
    'direction': t / length,
    'log_length': jnp.log(length[:, 0]),
    'log_errors': jnp.zeros((len(pose), 3)),
  }
  return network.Motion(**values | changes)


def about_y(degrees):
  c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
  return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float32)


@pytest.fixture
def pose():
  t = np.array([[0.3, -0.4, 1.2], [0, 0, 2], [1e-5, 0, 0]], np.float32)
  rotation = np.stack([about_y(x) for x in (10, -30, 5)])
  return jnp.asarray(np.concatenate([rotation, t[..., None]], -1))


def test_six_numbers_give_rotations_that_turn_as_the_first_rows_say():
  six = jax.random.normal(jax.random.key(1), (50, 6))
  rotation = np.asarray(network.rotation_of(six))
  np.testing.assert_allclose(
    rotation @ rotation.mT, np.tile(np.eye(3), (50, 1, 1)), atol=1e-5
  )
  np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)
  true = about_y(40)
  scaled = jnp.concatenate([3 * true[0], 0.5 * true[1] + 2 * true[0]])
  np.testing.assert_allclose(network.rotation_of(scaled), true, atol=1e-6)


def test_a_motion_is_well_formed_and_of_each_pair_alone(estimate, params):
  a, b = pictures(3), pictures(3, seed=1)
  out = estimate(params, a, b)
  assert out.rotation.shape == (3, 3, 3)
  assert out.log_errors.shape == (3, len(network.PARTS))
  np.testing.assert_allclose(
    jnp.linalg.norm(out.direction, axis=-1), 1, atol=1e-5
  )
  b[2] = 255 - b[2]
  other = estimate(params, a, b)
  np.testing.assert_array_equal(other.rotation[:2], out.rotation[:2])
  assert np.abs(other.rotation[2] - out.rotation[2]).max() > 1e-4


def test_at_first_it_hardly_turns(estimate, params):
  out = estimate(params, pictures(3), pictures(3, seed=1))
  trace = np.trace(np.asarray(out.rotation), axis1=1, axis2=2)
  assert np.degrees(np.arccos((trace - 1) / 2)).max() < 45


def test_errors_are_chords_and_what_does_not_move_has_no_direction(pose):
  turned = jnp.asarray(about_y(20)) @ pose[:, :, :3]
  out = motion(
    pose,
    rotation=turned,
    direction=-motion(pose).direction,
    log_length=motion(pose).log_length + 0.5,
  )
  error, weight = network.errors(out, pose)
  np.testing.assert_allclose(error[:, 0], 2 * np.sin(np.radians(10)), atol=2e-3)
  np.testing.assert_allclose(error[:2, 1], 2, atol=1e-3)
  np.testing.assert_allclose(error[:2, 2], 0.5, atol=1e-5)
  np.testing.assert_array_equal(weight, [[1, 1, 1], [1, 1, 1], [1, 0, 0]])


def test_the_loss_is_least_where_errors_are_as_expected(pose):
  turned = jnp.asarray(about_y(20)) @ pose[:, :, :3]
  true = 2 * np.sin(np.radians(10))

  def loss(expected):
    # The other parts have next to no error.
    log = jnp.zeros((3, 3)).at[:, 0].set(np.log(expected))
    out = motion(pose, rotation=turned, log_errors=log)
    return float(network.loss(out, pose))

  assert loss(true) < loss(0.7 * true)
  assert loss(true) < loss(1.4 * true)


def test_gradients_are_finite_where_all_is_right(pose):
  grads = jax.grad(lambda m: network.loss(m, pose))(motion(pose))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_matching_alone_finds_where_a_picture_moved(functional, params):
  """Random descriptors, as yet untrained, see a shift by two tokens."""
  a = pictures(1)
  b = np.roll(a, 8, axis=2)

  @jax.jit
  def displacement(params, a, b):
    net = functional.bind(params)
    return net.match(net.encode(a), net.encode(b))[1]

  moved = np.asarray(displacement(params, a, b)).reshape(8, 8, -1, 2)
  # (row, column), in half pictures; away from where it wraps.
  inner = np.median(moved[1:-1, 1:5], axis=(0, 1, 2))
  np.testing.assert_allclose(inner, [0, 2 * 8 / 32], atol=0.15)
  still = np.asarray(displacement(params, a, a)).reshape(8, 8, -1, 2)
  assert np.abs(np.median(still, axis=(0, 1, 2))).max() < 0.1


def test_true_places_are_where_points_project():
  """Against a plain projection; a token of unknown depth has none."""
  rng = np.random.default_rng(0)
  depth = rng.uniform(1, 3, (1, 16)).astype(np.float32)
  depth[0, 5] = 0
  fx, fy, cx, cy = intrinsics = np.float32([0.9, 0.8, 0.45, 0.55])
  t = np.float32([0.3, -0.1, 0.2])
  pose = np.concatenate([about_y(10), t[:, None]], 1)[None]
  places, weight = network.true_places(
    jnp.asarray(depth), jnp.asarray(intrinsics)[None], jnp.asarray(pose)
  )
  for token in range(16):
    u, v = (token % 4 + 0.5) / 4, (token // 4 + 0.5) / 4
    ray = np.array([(u - cx) / fx, (v - cy) / fy, 1])
    x, y, z = about_y(10) @ (ray * depth[0, token]) + t
    there = 2 * np.array([y / z * fy + cy, x / z * fx + cx]) - 1
    if token != 5:
      np.testing.assert_allclose(places[0, token], there, atol=1e-5)
    inside = token != 5 and np.abs(there).max() < 1
    assert weight[0, token] == inside
  assert 0 < weight.sum() < 15


def test_the_matching_loss_is_the_distance_of_what_is_known():
  depth = jnp.ones((1, 16)).at[0, 3].set(0)
  intrinsics = jnp.array([[1, 1, 0.5, 0.5]])
  pose = jnp.eye(4)[None, :3]
  places, _ = network.true_places(depth, intrinsics, pose)
  away = (
    places[:, :, None].at[0, 3].add(5.0)
    + jnp.array([0.0, 0.1])[None, None, None]
  )
  out = network.Motion(None, None, None, None, jnp.tile(away, (1, 1, 2, 1)))
  value = network.matching_loss(out, depth, intrinsics, pose)
  np.testing.assert_allclose(value, 0.1, atol=1e-4)
