"""Image metrics against scikit-image and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from xfactor.metrics import images
from xfactor.metrics import lpips as lpips_lib
from xfactor.nn.layers import to_float


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


@pytest.mark.slow
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


def uint8_pair(count, size=(32, 40)):
  return (np.uint8(np.round(255 * x)) for x in pair(count, count, *size, 3))


@pytest.fixture(scope='module')
def alexnet():
  rng = np.random.default_rng(0)
  return {
    name: abs(rng.normal(0, 0.05, x.shape)).astype(np.float32)
    for name, x in lpips_lib.param_shapes('alexnet').items()
  }


@jax.jit
def scored(a, b, lpips):
  return images.score(to_float(a), to_float(b), lpips)


def test_scores_are_those_of_each_image(alexnet):
  a, b = uint8_pair(5)
  got = scored(a, b, {'lpips_alex': alexnet})
  assert got.keys() == {'psnr', 'ssim', 'lpips_alex'}
  one_lpips = jax.jit(lpips_lib.lpips)
  for i in range(5):
    unit = a[i] / np.float32(255), b[i] / np.float32(255)
    np.testing.assert_allclose(
      got['psnr'][i], peak_signal_noise_ratio(*unit, data_range=1.0), atol=1e-4
    )
    np.testing.assert_allclose(got['ssim'][i], reference_ssim(*unit), atol=1e-4)
    lpips = one_lpips(alexnet, *(jnp.asarray(2 * x - 1) for x in unit))
    np.testing.assert_allclose(got['lpips_alex'][i], lpips, rtol=1e-4)


def test_an_image_is_scored_as_a_viewer_gets_it():
  a, b = map(jnp.asarray, uint8_pair(2))
  between = to_float(a) + jnp.float32(0.9 / 255)  # Less than half a level.
  want = images.score(to_float(a), to_float(b), {})
  assert want.keys() == {'psnr', 'ssim'}
  for name, values in images.score(between, to_float(b), {}).items():
    np.testing.assert_array_equal(values, want[name])


@pytest.mark.slow
def test_batches_and_devices_change_nothing(alexnet):
  a, b = uint8_pair(11)
  lpips = {'lpips': alexnet}
  want = scored(a, b, lpips)
  mesh = Mesh(np.array(jax.devices()), ('data',))
  assert mesh.size == 8
  for batch, sharding in ((3, None), (8, NamedSharding(mesh, P('data')))):
    weights = images.everywhere(lpips, sharding)
    got = images.in_batches(
      lambda a, b, weights=weights: scored(a, b, weights),
      *(a, b),
      batch=batch,
      sharding=sharding,
    )
    for name, values in want.items():
      assert got[name].shape == (11,)
      np.testing.assert_allclose(got[name], values, rtol=1e-5)


def test_in_batches_calls_with_one_size_and_keeps_true_rows_only():
  sizes = []

  def function(x, y):
    sizes.append(len(x))
    return {'sum': x + y, 'nothing': x[:, :0]}

  x = np.arange(14.0, dtype=np.float32).reshape(7, 2)
  got = images.in_batches(function, x, 2 * x, batch=3)
  assert sizes == [3, 3, 3]
  np.testing.assert_array_equal(got['sum'], 3 * x)
  assert got['nothing'].shape == (7, 0)
  assert images.in_batches(function, x[:0], x[:0], batch=3)['sum'].shape == (
    0,
    2,
  )
