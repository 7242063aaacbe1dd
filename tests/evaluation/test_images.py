"""Image metrics against scikit-image and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from xfactor.evaluation import images


def pair(seed, *shape):
  """A smooth random image in [0, 1] and a noisy copy of it."""
  rng = np.random.default_rng(seed)
  height, width = shape[-3:-1]
  y, x = np.mgrid[0:height, 0:width] / 9.0
  phase = rng.uniform(0, 6, (*shape[:-3], 1, 1, 3))
  a = 0.5 + 0.4 * np.sin(y[..., None] + phase) * np.cos(x[..., None])
  b = np.clip(a + rng.normal(0, 0.1, shape), 0, 1)
  return a.astype(np.float32), b.astype(np.float32)


def reference_ssim(a, b):
  return structural_similarity(
    a,
    b,
    gaussian_weights=True,
    sigma=1.5,
    use_sample_covariance=False,
    data_range=1.0,
    channel_axis=-1,
  )


@pytest.mark.parametrize('size', [(11, 11), (12, 31), (37, 64), (65, 17)])
def test_matches_scikit_image(size):
  a, b = pair(sum(size), *size, 3)
  np.testing.assert_allclose(
    images.ssim(jnp.asarray(a), jnp.asarray(b)),
    reference_ssim(a, b),
    atol=1e-5,
  )
  np.testing.assert_allclose(
    images.psnr(jnp.asarray(a), jnp.asarray(b)),
    peak_signal_noise_ratio(a, b, data_range=1.0),
    atol=1e-4,
  )


def test_white_noise_matches_scikit_image():
  rng = np.random.default_rng(3)
  a, b = rng.uniform(0, 1, (2, 23, 41, 3)).astype(np.float32)
  np.testing.assert_allclose(
    images.ssim(jnp.asarray(a), jnp.asarray(b)),
    reference_ssim(a, b),
    atol=1e-5,
  )


@pytest.mark.parametrize('metric', [images.psnr, images.ssim])
def test_batches_of_any_rank_under_jit(metric):
  a, b = pair(0, 2, 3, 16, 20, 3)
  whole = jax.jit(metric)(jnp.asarray(a), jnp.asarray(b))
  assert whole.shape == (2, 3)
  one = metric(jnp.asarray(a[1, 2]), jnp.asarray(b[1, 2]))
  np.testing.assert_allclose(whole[1, 2], one, rtol=1e-5)


def test_identical_images():
  a = jnp.asarray(pair(0, 16, 16, 3)[0])
  assert images.psnr(a, a) == pytest.approx(100.0, rel=1e-5)
  assert images.psnr(a, a, max_db=60.0) == pytest.approx(60.0, rel=1e-5)
  assert images.ssim(a, a) == pytest.approx(1.0, abs=1e-6)


def test_psnr_by_hand():
  a = jnp.full((4, 4, 3), 0.5)
  assert images.psnr(a, a + 0.1) == pytest.approx(20.0, abs=1e-3)
  black, white = jnp.zeros((4, 4, 3)), jnp.ones((4, 4, 3))
  assert images.psnr(black, white) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize('metric', [images.psnr, images.ssim])
def test_values_outside_the_unit_range_are_clipped(metric):
  a, b = (jnp.asarray(x) for x in pair(0, 16, 16, 3))
  beyond = jnp.where(b > 0.6, b + 1.0, b)
  clipped = jnp.clip(beyond, 0.0, 1.0)
  assert metric(a, beyond) == metric(a, clipped)


@pytest.mark.parametrize('metric', [images.psnr, images.ssim])
def test_low_precision_images_are_compared_in_float32(metric):
  a, b = (jnp.asarray(x, jnp.bfloat16) for x in pair(0, 16, 16, 3))
  value = metric(a, b)
  assert value.dtype == jnp.float32
  exact = metric(a.astype(jnp.float32), b.astype(jnp.float32))
  np.testing.assert_allclose(value, exact, rtol=1e-6)


def test_ssim_refuses_images_smaller_than_its_window():
  a = jnp.zeros((10, 64, 3))
  with pytest.raises(ValueError, match='at least 11 x 11 pixels, not 10 x 64'):
    images.ssim(a, a)
