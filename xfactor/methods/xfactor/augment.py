"""Colour jitter and blur, the paper's pose-preserving augmentations.

`sample` makes all random numbers of a batch from one key; `apply` is
deterministic. Images are float [-1, 1]; all images of an example get the same
augmentation, so that they differ only in pose.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from xfactor import limits


@dataclasses.dataclass(frozen=True)
class Config:
  """Strengths of the augmentations; defaults are the paper's.

  Attributes:
    jitter_prob: Share of examples that are colour jittered.
    brightness: Largest shift, in units of [0, 1].
    contrast: Largest change of the contrast factor around the image's mean.
    saturation: Largest change of the saturation factor in HSV.
    hue: Largest shift of the hue, in full circles.
    blur_prob: Share of examples that are blurred.
    blur_sigma: Smallest and largest standard deviation in pixels.
    blur_taps: Length of the Gaussian kernel in pixels, odd.
  """

  jitter_prob: float = limits.between(0.9, 0, 1)
  brightness: float = limits.at_least(0.2, 0)
  contrast: float = limits.at_least(0.2, 0)
  saturation: float = limits.at_least(0.2, 0)
  hue: float = limits.at_least(0.05, 0)
  blur_prob: float = limits.between(0.3, 0, 1)
  blur_sigma: tuple[float, float] = (0.1, 2.0)
  blur_taps: int = limits.at_least(7, 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
  """Random numbers, one row per example; `order[i]` is the place of op i."""

  jitter: Bool[Array, '*parts b']
  order: Int[Array, '*parts b 4']
  brightness: Float[Array, '*parts b']
  contrast: Float[Array, '*parts b']
  saturation: Float[Array, '*parts b']
  hue: Float[Array, '*parts b']
  blur: Bool[Array, '*parts b']
  sigma: Float[Array, '*parts b']


def sample(key: PRNGKeyArray, batch: int, config: Config) -> Samples:
  """Samples the augmentation of each of `batch` examples."""
  # One call on one axis: each call of the generator takes long to compile, and
  # three times as long on two axes.
  uniform = jax.random.uniform(key, (batch * 11,)).reshape(batch, 11)
  jitter, blur, brightness, contrast, saturation, hue, sigma = uniform[:, :7].T

  def between(x, low, high):
    return low + (high - low) * x

  def about(x, centre, spread):
    return between(x, centre - spread, centre + spread)

  return Samples(
    jitter=jitter < config.jitter_prob,
    order=jnp.argsort(uniform[:, 7:], axis=1),
    brightness=about(brightness, 0.0, config.brightness),
    contrast=about(contrast, 1.0, config.contrast),
    saturation=about(saturation, 1.0, config.saturation),
    hue=about(hue, 0.0, config.hue),
    blur=blur < config.blur_prob,
    sigma=between(sigma, *config.blur_sigma),
  )


def apply(
  images: Float[Array, 'b *v h w 3'], draws: Samples, config: Config
) -> Float[Array, 'b *v h w 3']:
  """Jitters colours, clips, blurs and clips again, as the public code."""
  jittered = 2 * jitter_colours((images + 1) / 2, draws) - 1
  jitter = _per_example(draws.jitter, images)
  images = jnp.clip(jnp.where(jitter, jittered, images), -1, 1)
  kernel = gaussian_kernel(draws.sigma, config.blur_taps)
  identity = jnp.zeros(config.blur_taps).at[config.blur_taps // 2].set(1)
  kernel = jnp.where(draws.blur[:, None], kernel, identity[None])
  return jnp.clip(blur(images, kernel), -1, 1)


def jitter_colours(
  images: Float[Array, 'b *v h w 3'], draws: Samples
) -> Float[Array, 'b *v h w 3']:
  """Applies the four colour operations in each example's order, unclipped.

  Brightness and contrast commute: brightness shifts the mean around which
  contrast scales. It only matters which of them come before, between and after
  saturation and hue, each of which needs a conversion to HSV and back.
  """
  brightness, contrast, saturation, hue = draws.order.T
  first, second = jnp.minimum(saturation, hue), jnp.maximum(saturation, hue)

  def brightness_and_contrast(x, after, before):
    def is_due(place):
      return (after < place) & (place < before)

    shift = jnp.where(is_due(brightness), draws.brightness, 0.0)
    gain = jnp.where(is_due(contrast), draws.contrast, 1.0)
    return adjust_contrast(x, _per_example(gain, x)) + _per_example(shift, x)

  def one_round(x, due):
    after, before, is_saturation = due
    x = brightness_and_contrast(x, after, before)
    is_saturation, factor, turn = (
      _per_example(value, x)
      for value in (is_saturation, draws.saturation, draws.hue)
    )
    h, s, v = _rgb_to_hsv(x)
    s = jnp.where(is_saturation[..., 0], _scale_saturation(s, factor), s)
    h = jnp.where(is_saturation[..., 0], h, _turn_hue(h, turn))
    return _hsv_to_rgb(h, s, v), None

  rounds = (
    jnp.stack([jnp.full_like(first, -1), first]),
    jnp.stack([first, second]),
    jnp.stack([saturation < hue, saturation > hue]),
  )
  x = jax.lax.scan(one_round, images, rounds)[0]
  return brightness_and_contrast(x, second, jnp.full_like(second, 4))


def adjust_contrast(
  images: Float[Array, '*b h w 3'], factor: Float[Array, '*#b 1 1 1']
) -> Float[Array, '*b h w 3']:
  """Scales around each channel's spatial mean (dm_pix.adjust_contrast)."""
  mean = jnp.mean(images, axis=(-3, -2), keepdims=True)
  return factor * (images - mean) + mean


def adjust_saturation(
  images: Float[Array, '*b h w 3'], factor: Float[Array, '*#b 1 1 1']
) -> Float[Array, '*b h w 3']:
  """Scales and clips the saturation in HSV (dm_pix.adjust_saturation)."""
  h, s, v = _rgb_to_hsv(images)
  return _hsv_to_rgb(h, _scale_saturation(s, factor), v)


def adjust_hue(
  images: Float[Array, '*b h w 3'], turn: Float[Array, '*#b 1 1 1']
) -> Float[Array, '*b h w 3']:
  """Shifts the hue, in full circles (dm_pix.adjust_hue)."""
  h, s, v = _rgb_to_hsv(images)
  return _hsv_to_rgb(_turn_hue(h, turn), s, v)


def _scale_saturation(s: Array, factor: Array) -> Array:
  return jnp.clip(s * factor[..., 0], 0, 1)


def _turn_hue(h: Array, turn: Array) -> Array:
  return _fraction(h + turn[..., 0])


def _fraction(x: Array) -> Array:
  """`x % 1` without the libm call per number that a CPU would need."""
  return x - jnp.floor(x)


def _rgb_to_hsv(rgb: Array) -> tuple[Array, Array, Array]:
  red, green, blue = (rgb[..., i] for i in range(3))
  value = jnp.max(rgb, axis=-1)
  spread = value - jnp.min(rgb, axis=-1)
  safe = jnp.where(spread == 0, 1.0, spread)
  # Not `value == red`: XLA may compute both with different rounding.
  sector = jnp.where(
    (red >= green) & (red >= blue),
    (green - blue) / safe,
    jnp.where(green >= blue, 2 + (blue - red) / safe, 4 + (red - green) / safe),
  )
  hue = jnp.where(spread == 0, 0.0, _fraction(sector / 6))
  saturation = jnp.where(
    value > 0, spread / jnp.where(value > 0, value, 1.0), 0.0
  )
  return hue, saturation, value


def _hsv_to_rgb(h: Array, s: Array, v: Array) -> Array:
  # Channel n is v(1 - s max(0, min(k, 4 - k, 1))) with k = (n + 6h) mod 6.
  k = jnp.stack([n + 6 * h for n in (5, 3, 1)], axis=-1)
  k = jnp.where(k < 6, k, k - 6)
  ramp = jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
  return v[..., None] * (1 - s[..., None] * ramp)


def gaussian_kernel(
  sigma: Float[Array, '*b'], taps: int
) -> Float[Array, '*b k']:
  """Discrete Gaussians that sum to one; sigma in pixels."""
  offset = jnp.arange(taps, dtype=sigma.dtype) - taps // 2
  weights = jnp.exp(
    -0.5
    * jnp.einsum('...,K->...K', 1 / sigma, offset, precision='highest') ** 2
  )
  return weights / jnp.sum(weights, axis=-1, keepdims=True)


def blur(
  images: Float[Array, 'b *v h w c'], kernel: Float[Array, 'b k']
) -> Float[Array, 'b *v h w c']:
  """Blurs rows and columns with each example's kernel; zero padding."""
  taps = kernel.shape[-1]
  for axis in (-3, -2):
    length = images.shape[axis]
    pad = [(0, 0)] * images.ndim
    pad[axis] = (taps // 2, taps // 2)
    padded = jnp.pad(images, pad)
    images = sum(
      _per_example(kernel[:, i], images)
      * jax.lax.slice_in_dim(padded, i, i + length, axis=axis)
      for i in range(taps)
    )
  return images


def _per_example(values: Array, images: Array) -> Array:
  return values.reshape(-1, *(1,) * (images.ndim - 1))
