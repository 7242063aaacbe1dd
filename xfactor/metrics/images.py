"""Image similarity: PSNR and SSIM. LPIPS is in metrics/lpips.py.

`in_batches` maps a function over any number of images; the result does not
depend on the batch size or the devices.
"""

from collections.abc import Callable, Mapping
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from xfactor.metrics import lpips as lpips_lib
from xfactor.nn.layers import to_float, to_uint8

# skimage truncates its Gaussian at 3.5 sigma: radius 5, so 11 x 11 pixels.
_SSIM_SIGMA = 1.5
_SSIM_RADIUS = 5


def psnr(
  a: Float[Array, '*batch h w 3'],
  b: Float[Array, '*batch h w 3'],
  max_db: float = 100.0,
) -> Float[Array, '*batch']:
  """Returns each pair's peak signal-to-noise ratio in dB; higher is closer.

  Averages over scenes are averages of these per-image values.

  Args:
    a: Images; values are clipped to [0, 1].
    b: Images; values are clipped to [0, 1].
    max_db: Upper bound, also for identical images, so that a mean over images
      stays finite.
  """
  error = _unit_range(a) - _unit_range(b)
  mse = jnp.mean(jnp.square(error), axis=(-3, -2, -1))
  return -10.0 * jnp.log10(jnp.maximum(mse, 10.0 ** (-max_db / 10.0)))


def ssim(
  a: Float[Array, '*batch h w 3'], b: Float[Array, '*batch h w 3']
) -> Float[Array, '*batch']:
  """Returns each pair's structural similarity, 1 for identical images.

  Wang et al. 2004 with an 11 x 11 Gaussian window of sigma 1.5, per
  channel, averaged over the pixels whose window lies inside the image. Equals
  scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5,
  use_sample_covariance=False, data_range=1, channel_axis=-1)`.

  Args:
    a: Images; values are clipped to [0, 1].
    b: Images; values are clipped to [0, 1].

  Raises:
    ValueError: If an image is smaller than the window.
  """
  window = 2 * _SSIM_RADIUS + 1
  height, width = a.shape[-3:-1]
  if min(height, width) < window:
    raise ValueError(
      f'SSIM needs images of at least {window} x {window} pixels, not '
      f'{height} x {width}.'
    )
  a, b = _unit_range(a), _unit_range(b)
  mean_a, mean_b = _smooth(a), _smooth(b)
  var_a = _smooth(a * a) - mean_a * mean_a
  var_b = _smooth(b * b) - mean_b * mean_b
  covariance = _smooth(a * b) - mean_a * mean_b
  c1, c2 = 0.01**2, 0.03**2
  luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
  structure = (2 * covariance + c2) / (var_a + var_b + c2)
  return jnp.mean(luminance * structure, axis=(-3, -2, -1))


def _unit_range(x: Float[Array, '...']) -> Float[Array, '...']:
  """Converts to float32 and clips to [0, 1]."""
  return jnp.clip(x.astype(jnp.float32), 0.0, 1.0)


def _smooth(x: Float[Array, '*batch h w 3']) -> Float[Array, '*batch y x 3']:
  """Gaussian-weighted means over the windows that fit inside the image."""
  offsets = np.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1)
  weights = np.exp(-0.5 * (offsets / _SSIM_SIGMA) ** 2)
  weights = jnp.asarray(weights / weights.sum(), jnp.float32)
  images = einops.rearrange(x, '... h w c -> (...) h w c')
  # Sums of shifted images instead of a convolution, which would round its
  # float32 inputs on accelerators.
  for axis in (1, 2):
    size = images.shape[axis] - 2 * _SSIM_RADIUS
    images = sum(
      w * jax.lax.slice_in_dim(images, i, i + size, axis=axis)
      for i, w in enumerate(weights)
    )
  return images.reshape(*x.shape[:-3], *images.shape[1:])


def score(
  image: Float[Array, '*batch h w 3'],
  truth: Float[Array, '*batch h w 3'],
  lpips: Mapping[str, lpips_lib.Params],
) -> dict[str, Float[Array, '*batch']]:
  """Returns each image's 'psnr' (dB), 'ssim' and LPIPS.

  Args:
    image: Images in [-1, 1]; rounded to eight bits, as they are displayed.
    truth: Images in [-1, 1], of eight bits.
    lpips: Weights from `lpips_weights.load` by name of the LPIPS distance,
      such as 'lpips'.
  """
  image = to_float(to_uint8(image))
  unit, truth_unit = (image + 1) / 2, (truth + 1) / 2
  return {
    'psnr': psnr(unit, truth_unit),
    'ssim': ssim(unit, truth_unit),
    **{k: lpips_lib.lpips(w, image, truth) for k, w in lpips.items()},
  }


def in_batches(
  function: Callable[..., Any],
  *arrays: np.ndarray,
  batch: int,
  sharding: NamedSharding | None = None,
) -> Any:
  """Applies a function to rows, in batches of one size.

  The last batch is padded with zeros, and their results are dropped.

  Args:
    function: Function from arrays [batch, ...] to a tree of such arrays;
      compiled once. Rows must not affect each other.
    *arrays: Arrays [n, ...].
    batch: Rows per batch.
    sharding: Sharding of each batch over devices of this process, whose number
      divides the batch; None: the first device.

  Returns:
    NumPy arrays [n, ...].
  """
  parts = []
  for start in range(0, max(len(arrays[0]), 1), batch):
    rows = [x[start : start + batch] for x in arrays]
    count = len(rows[0])
    filled = [
      np.pad(x, [(0, batch - count)] + [(0, 0)] * (x.ndim - 1)) for x in rows
    ]
    out = jax.device_get(function(*jax.device_put(filled, sharding)))
    parts.append(jax.tree.map(lambda x, count=count: x[:count], out))
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def everywhere(weights: Any, sharding: NamedSharding | None) -> Any:
  """Replicates weights on all devices of `sharding`, or on the first."""
  if sharding is not None:
    sharding = NamedSharding(sharding.mesh, P())
  return jax.device_put(weights, sharding)
