"""Each augmentation against the official code's numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_tolerance import ROUNDING, assert_close
from xfactor.methods.xfactor import augment

ONE = jnp.ones((1, 1, 1))


@pytest.fixture(scope='module')
def arrays(golden):
  return golden('xf_augment')


@pytest.fixture(scope='module')
def images(arrays):
  return 2 * (jnp.asarray(arrays['in/u8'], jnp.float32) / 255) - 1


@pytest.mark.parametrize('where', ['pix', 'pix_oob'])
@pytest.mark.parametrize(
  ('name', 'function'),
  [
    ('contrast0.85', lambda x: augment.adjust_contrast(x, 0.85 * ONE)),
    ('sat1.15', lambda x: augment.adjust_saturation(x, 1.15 * ONE)),
    ('hue-0.04', lambda x: augment.adjust_hue(x, -0.04 * ONE)),
  ],
)
def test_operations_are_golden_in_and_out_of_range(
  arrays, images, where, name, function
):
  image = (images[0, 0] + 1) / 2
  image = image if where == 'pix' else 1.4 * image - 0.2
  assert_close(function(image), arrays[f'{where}/{name}'])


def test_kernel_is_golden(arrays):
  kernel = augment.gaussian_kernel(jnp.array(0.7), 7)
  assert_close(kernel, arrays['kernel/s0.7_k7'])


@pytest.mark.parametrize('example', [0, 1, 2])
def test_blur_is_golden_for_some_sigma(arrays, images, example):
  """One sigma within the range explains both frames of each example."""
  frames = images[example : example + 1]
  want = arrays['blur/key7_p1'][example : example + 1]

  @jax.jit
  def errors(sigmas):
    kernels = augment.gaussian_kernel(sigmas, 7)
    blurred = jax.vmap(lambda k: augment.blur(frames, k[None]))(kernels)
    return jnp.abs(blurred - want[None]).max(axis=(1, 2, 3, 4, 5))

  low, high = 0.1, 2.0
  for _ in range(5):  # Zoom in on the best of 33 each time.
    sigmas = np.linspace(low, high, 33, dtype=np.float32)
    best = sigmas[int(np.argmin(errors(sigmas)))]
    step = sigmas[1] - sigmas[0]
    low, high = best - step, best + step
  error = float(errors(np.full(33, best))[0])
  assert error < 2 * ROUNDING * np.abs(want).max()


def test_draws_keep_to_their_ranges():
  config = augment.Config()
  draws = augment.sample(jax.random.key(0), 4096, config)
  assert abs(float(draws.jitter.mean()) - 0.9) < 0.02
  assert abs(float(draws.blur.mean()) - 0.3) < 0.03
  assert (np.sort(draws.order, axis=1) == np.arange(4)).all()
  for values, centre, spread in (
    (draws.brightness, 0, 0.2),
    (draws.contrast, 1, 0.2),
    (draws.saturation, 1, 0.2),
    (draws.hue, 0, 0.05),
    (draws.sigma, 1.05, 0.95),
  ):
    off = np.abs(np.asarray(values) - centre)
    assert 0.95 * spread < off.max() <= spread * (1 + 1e-6)


@pytest.mark.slow
def test_all_frames_of_an_example_are_changed_alike(images):
  frames = jnp.repeat(images[:, :1], 2, axis=1)
  draws = augment.sample(jax.random.key(1), len(frames), augment.Config())
  out = augment.apply(frames, draws, augment.Config())
  np.testing.assert_array_equal(out[:, 0], out[:, 1])
  assert np.abs(out).max() <= 1
  assert not np.allclose(out, frames)


def test_nothing_is_changed_where_nothing_is_drawn(images):
  config = augment.Config(jitter_prob=0.0, blur_prob=0.0)
  draws = augment.sample(jax.random.key(2), len(images), config)
  np.testing.assert_array_equal(augment.apply(images, draws, config), images)


@pytest.mark.slow
def test_the_order_of_operations_matters_and_is_each_examples_own(images):
  config = augment.Config(jitter_prob=1.0, blur_prob=0.0)
  draws = augment.sample(jax.random.key(3), len(images), config)
  reverse = dataclasses.replace(draws, order=3 - draws.order)
  out, other = (augment.apply(images, d, config) for d in (draws, reverse))
  assert not np.allclose(out, other, atol=1e-3)
  # By hand, for the first example.
  x = (images[0] + 1) / 2
  for op in np.argsort(draws.order[0]):
    x = (
      lambda x: x + draws.brightness[0],
      lambda x: augment.adjust_contrast(x, draws.contrast[0] * ONE[None]),
      lambda x: augment.adjust_saturation(x, draws.saturation[0] * ONE[None]),
      lambda x: augment.adjust_hue(x, draws.hue[0] * ONE[None]),
    )[op](x)
  assert_close(out[0], np.clip(2 * x - 1, -1, 1))
