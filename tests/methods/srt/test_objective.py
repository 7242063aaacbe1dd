"""Rays, their colours and canonical coordinates, made on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xfactor.geometry import cameras
from xfactor.methods.srt import network, objective

B, V, H, W = 2, 3, 6, 8


@pytest.fixture(scope='module')
def views():
  rng = np.random.default_rng(0)
  eyes = rng.normal(size=(B, V, 3))
  poses = cameras.look_at(eyes, -eyes, np.array([0.0, 0.0, 1.0]))
  return (
    rng.integers(0, 256, (B, V, H, W, 3), np.uint8),
    rng.uniform(0.5, 1, (B, V, 4)).astype(np.float32),
    poses.astype(np.float32),
  )


@pytest.mark.parametrize('count', [1, 5, 7, 12])
def test_pixels_are_distinct_and_equally_likely(count):
  population, tries = 12, 4000
  chosen = np.asarray(
    objective.choose_pixels(jax.random.key(0), tries, population, count)
  )
  assert chosen.shape == (tries, count)
  in_order = np.sort(chosen, axis=1)
  assert (np.diff(in_order, axis=1) > 0).all()
  share = np.bincount(chosen.ravel(), minlength=population) / tries
  # Five standard deviations of a share of `tries` draws.
  expected = count / population
  bound = 5 * np.sqrt(expected * (1 - expected) / tries)
  np.testing.assert_allclose(share, expected, atol=bound + 1e-9)


def test_pixels_of_an_example_differ_from_those_of_the_next():
  chosen = objective.choose_pixels(jax.random.key(1), 2, 1000, 50)
  assert len(np.intersect1d(*chosen)) < 25


@pytest.mark.slow
def test_targets_are_the_pixels_of_whole_views(views):
  images, intrinsics, poses = views
  pixels = np.stack([np.arange(0, V * H * W, 5), np.arange(3, V * H * W, 5)])
  colours, origins, directions = objective.targets_of(
    *map(jnp.asarray, views), jnp.asarray(pixels)
  )
  whole = cameras.pixel_rays(intrinsics, poses, H, W)
  for got, want in zip(
    (colours, origins, directions), (images / 255, *whole), strict=True
  ):
    flat = want.reshape(B, -1, 3)
    want = np.stack([flat[b, pixels[b]] for b in range(B)])
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('stride', [1, 2, 4])
def test_inputs_are_every_nth_pixel(views, stride):
  images, intrinsics, poses = views
  got = objective.inputs_of(*map(jnp.asarray, views), stride)
  origins, directions = cameras.pixel_rays(intrinsics, poses, H, W)
  some = slice(stride // 2, None, stride)
  np.testing.assert_allclose(
    got.images, np.float32(images[:, :, some, some]) / 255, atol=1e-7
  )
  np.testing.assert_allclose(
    got.directions, directions[:, :, some, some], atol=1e-6
  )
  np.testing.assert_allclose(got.origins, origins[:, :, 0, 0], atol=1e-6)
  assert got.images.shape[2:4] == (
    objective.strided(H, stride),
    objective.strided(W, stride),
  )


@pytest.mark.parametrize('steps', [1, 2])
def test_strides_are_those_of_the_public_downsampling(golden, steps):
  arrays = golden('srt_datasets')
  stride = 2**steps
  some = slice(stride // 2, None, stride)
  np.testing.assert_array_equal(
    arrays['downsample/in'][some, some], arrays[f'downsample/{steps}']
  )


def test_canonical_coordinates(views):
  """Those of the first view's camera; rays are the same lines as before."""
  poses = objective.to_canonical(jnp.asarray(views[2]))
  eye = np.broadcast_to(np.eye(3, 4), (B, 3, 4))
  np.testing.assert_allclose(poses[:, 0], eye, atol=1e-6)
  centres = cameras.camera_centre(views[2])
  first = np.broadcast_to(views[2][:, :1], views[2].shape)
  np.testing.assert_allclose(
    cameras.camera_centre(np.asarray(poses)),
    cameras.transform(first, centres),
    atol=1e-5,
  )


class Guess(network.SRT):
  """Knows the mean colour of its inputs, and what it was asked."""

  def __init__(self, coarse: float | None = None):
    self.coarse = coarse
    self.asked = Asked()

  def encode(self, images, origins, directions):
    self.asked.images, self.asked.eyes = images, origins
    return images.mean((1, 2, 3))[:, None]

  def decode(self, tokens, origins, directions, noise=None):
    self.asked.origins = origins
    colour = jnp.broadcast_to(tokens, origins.shape)
    coarse = None if self.coarse is None else colour + self.coarse
    return network.Rendered(color=colour, coarse_color=coarse)


class Asked:
  """What the model was given."""


def batch_of(views):
  names = ('images', 'intrinsics', 'world_to_camera')
  return dict(zip(names, map(jnp.asarray, views), strict=True))


def test_loss_is_the_mean_squared_error_of_the_rays(views):
  config = objective.Config(rays=20, inputs=1)
  draws = objective.sample(jax.random.key(0), views[0].shape, config)
  assert draws.noise is None
  guess = Guess()
  loss, parts = objective.loss(guess, batch_of(views), draws, config)
  images = views[0] / 255
  others = images[:, 1:].reshape(B, -1, 3)
  truth = np.stack([others[b, draws.pixels[b]] for b in range(B)])
  mean = images[:, 0].mean((1, 2))
  error = ((truth - mean[:, None]) ** 2).mean((1, 2))
  np.testing.assert_allclose(loss, error.mean(), rtol=1e-5)
  np.testing.assert_allclose(
    parts['psnr'], np.mean(-10 * np.log10(error)), rtol=1e-5
  )
  assert guess.asked.images.shape == (B, 1, H, W, 3)
  # Canonical: the first camera is at the origin.
  np.testing.assert_allclose(guess.asked.eyes, 0, atol=1e-6)


def test_coarse_pictures_count_as_well(views):
  config = objective.Config(rays=20, inputs=1, canonical=False)
  draws = objective.sample(jax.random.key(0), views[0].shape, config)
  loss, parts = objective.loss(
    Guess(coarse=0.0), batch_of(views), draws, config
  )
  np.testing.assert_allclose(loss, 2 * parts['mse'], rtol=1e-6)
  np.testing.assert_allclose(parts['coarse_mse'], parts['mse'], rtol=1e-6)


@pytest.mark.slow
def test_input_views_may_be_targets(views):
  config = objective.Config(
    rays=V * H * W, inputs=2, include_inputs=True, canonical=False
  )
  guess = Guess()
  draws = objective.sample(jax.random.key(0), views[0].shape, config)
  objective.loss(guess, batch_of(views), draws, config)
  assert sorted(draws.pixels[0].tolist()) == list(range(V * H * W))
  drawn = {tuple(np.round(x, 4)) for x in np.asarray(guess.asked.origins[0])}
  eyes = cameras.camera_centre(views[2][0])
  assert drawn == {tuple(np.round(x, 4)) for x in eyes}


def test_rays_at_once_shrink_with_what_a_ray_costs():
  light = network.Config()
  volume = network.Config(decoder='nerf')
  assert objective.at_once(light, 300) > 100 * objective.at_once(volume, 300)
  assert objective.at_once(light, 1500) < objective.at_once(light, 300)
  assert objective.at_once(volume, 10**9) == 1
