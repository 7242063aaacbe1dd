"""Rays through volumes: the public code's numbers, and properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_tolerance import assert_close
from xfactor.methods.srt import network, volume

NEAR, FAR = 0.5, 8.0


@pytest.fixture(scope='module')
def arrays(golden):
  return golden('srt_nerf_utils')


def test_coarse_samples_are_golden(arrays):
  rays = (
    jnp.asarray(arrays['samp/camera_pos']),
    jnp.asarray(arrays['samp/rays']),
  )
  depths = volume.coarse_depths(*rays, 12, NEAR, FAR)
  assert_close(depths, arrays['samp/coarse_depths'])
  assert_close(volume.points(*rays, depths), arrays['samp/coarse_points'])
  cut = volume.coarse_depths(*rays, 12, NEAR, FAR, min_z=-1.0)
  assert_close(cut, arrays['samp/coarse_minz_depths'])
  assert np.abs(cut - depths).max() > 1


def test_integration_is_golden(arrays):
  color, alpha, depth, weights = volume.integrate(
    *(
      jnp.asarray(arrays[f'{name}'])
      for name in ('draw/densities', 'draw/colors', 'samp/coarse_depths')
    )
  )
  assert_close(
    jnp.concatenate([color, alpha[..., None]], -1), arrays['draw/image_rgba']
  )
  assert_close(depth, arrays['draw/expected_depth'])
  assert_close(weights, arrays['draw/depth_dist'])


def test_fine_samples_are_golden(arrays):
  rays = (
    jnp.asarray(arrays['samp/camera_pos']),
    jnp.asarray(arrays['samp/rays']),
  )
  weights = jnp.asarray(arrays['draw/depth_dist'])
  depths = jnp.asarray(arrays['samp/coarse_depths'])
  fine = volume.fine_depths(weights, depths, 10, NEAR)
  assert_close(fine, arrays['fine/depths'])
  assert_close(volume.points(*rays, fine), arrays['fine/points'])


def test_samples_of_segments_are_golden(arrays):
  samples = volume.sample_segments(
    jnp.asarray(arrays['pdf/bins']), jnp.asarray(arrays['pdf/p']), 9
  )
  assert_close(samples, arrays['pdf/samples9'])


def test_encodings_are_golden(arrays):
  """Each angle is one product, which is rounded alike everywhere."""
  positions = jnp.asarray(arrays['posenc/in'])
  places = network.positional_encoding(positions, -5)
  assert_close(places, arrays['posenc/oct15_start-5'])
  directions = network.positional_encoding(
    jnp.asarray(arrays['samp/rays'][:, :5]), 0
  )
  assert_close(jnp.concatenate([places, directions], -1), arrays['rayenc/flat'])


def test_noise_stays_in_its_part_of_the_ray():
  noise = jax.random.uniform(jax.random.key(0), (2, 3, 16))
  rays = jnp.zeros((2, 3, 3)), jnp.ones((2, 3, 3))
  depths = volume.coarse_depths(*rays, 16, 1.0, 5.0, noise=noise)
  np.testing.assert_allclose((depths - 1) * 4 % 1, noise, atol=1e-5)
  assert (np.floor((depths - 1) * 4) == np.arange(16)).all()


def test_samples_follow_the_probabilities():
  borders = jnp.array([0.0, 1.0, 3.0, 4.0])
  noise = jax.random.uniform(jax.random.key(0), (20_000,))
  samples = volume.sample_segments(
    borders, jnp.array([0.2, 0.0, 0.8]), 20_000, noise
  )
  counts, _ = np.histogram(samples, borders)
  np.testing.assert_allclose(counts / 20_000, [0.2, 0.0, 0.8], atol=0.01)
  # Even within a segment.
  np.testing.assert_allclose(samples[samples > 3].mean(), 3.5, atol=0.01)


def test_merging_orders_samples_with_what_they_hold():
  rng = np.random.default_rng(0)
  a, b = (jnp.asarray(rng.random((2, 3, n))) for n in (5, 2))
  depths, triples = volume.merge(
    (a, jnp.stack([a, 2 * a, 3 * a], -1)), (b, jnp.stack([b, 2 * b, 3 * b], -1))
  )
  np.testing.assert_array_equal(depths, jnp.sort(jnp.concatenate([a, b], -1)))
  np.testing.assert_array_equal(triples[..., 1], 2 * depths)


@pytest.mark.slow
@pytest.mark.parametrize('density', [0.0, 1e-3, 1e3])
def test_gradients_are_finite_in_clear_and_in_solid_rays(density):
  depths = jnp.linspace(2.0, 4.0, 8)[None, None]
  densities = jnp.full((1, 1, 8), density)
  colors = jnp.full((1, 1, 8, 3), 0.5)

  def value(densities, colors):
    color, alpha, depth, _ = volume.integrate(densities, colors, depths)
    return volume.over_white(color, alpha).sum() + depth.sum()

  grads = jax.grad(value, argnums=(0, 1))(densities, colors)
  assert all(np.isfinite(x).all() for x in grads)
