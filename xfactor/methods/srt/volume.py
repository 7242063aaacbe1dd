"""Volume rendering of densities and colours along rays, as in NeRF.

Pure functions of rays [b, r] and samples along them, all float32. They follow
the public SRT code (stelzner/srt, utils/nerf.py) exactly, including constants.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from xfactor.nn.layers import along_last

# Smallest probability of a segment, so that all can be sampled.
_PROBABILITY_FLOOR = 1e-5
# Smallest transmittance of a segment.
_TRANSMITTANCE_FLOOR = 1e-10
# Length of the last segment of a ray, which has no end.
_FAR = 1e10


def points(
  origins: Float[Array, 'b r 3'],
  directions: Float[Array, 'b r 3'],
  depths: Float[Array, 'b r n'],
) -> Float[Array, 'b r n 3']:
  """Returns the points at distances `depths` along the rays."""
  return origins[:, :, None] + directions[:, :, None] * depths[..., None]


def coarse_depths(
  origins: Float[Array, 'b r 3'],
  directions: Float[Array, 'b r 3'],
  samples: int,
  near: float,
  far: float,
  min_z: float | None = None,
  noise: Float[Array, 'b r n'] | None = None,
) -> Float[Array, 'b r n']:
  """Returns one depth in each of n equal segments of the ray, ascending.

  Args:
    origins: Origins of the rays.
    directions: Directions of the rays, of unit length.
    samples: Number of samples, n.
    near: Start of the first segment.
    far: End of the last segment.
    min_z: Height of the plane z = min_z at which rays end, if it is before
      `far`. If it is nearer than `near`, depths descend, as in the public code.
    noise: Position in each segment, [0, 1); None: the middle.
  """
  ends = jnp.full(directions.shape[:2], far)
  if min_z is not None:
    plane = (min_z - origins[..., 2]) / directions[..., 2]
    ends = jnp.where((plane >= 0) & (plane <= far), plane, ends)
  borders = jnp.linspace(0.0, 1.0, samples + 1)[None, None]
  borders = borders * (ends[..., None] - near) + near
  place = 0.5 if noise is None else noise
  return (1 - place) * borders[..., :-1] + place * borders[..., 1:]


def fine_depths(
  weights: Float[Array, 'b r n'],
  depths: Float[Array, 'b r n'],
  samples: int,
  near: float,
  noise: Float[Array, 'b r m'] | None = None,
) -> Float[Array, 'b r m']:
  """Samples depths in proportion to the coarse weights; not sorted.

  Three quarters of a coarse sample's weight go to the segment before it, one
  quarter to the segment after it.

  Args:
    weights: Weights of the coarse samples, from `integrate`.
    depths: Depths of the coarse samples, at least two.
    samples: Number of fine samples, m.
    near: Start of the first segment.
    noise: Argument of `sample_segments`.
  """
  first = jnp.full_like(depths[..., :1], near)
  last = 1.5 * depths[..., -1:] - 0.5 * depths[..., -2:-1]
  borders = jnp.concatenate([first, depths, last], -1)
  before = jnp.pad(0.75 * weights, ((0, 0), (0, 0), (0, 1)))
  after = jnp.pad(0.25 * weights, ((0, 0), (0, 0), (1, 0)))
  return sample_segments(borders, before + after, samples, noise)


def sample_segments(
  borders: Float[Array, '*b e'],
  probabilities: Float[Array, '*b n'],
  samples: int,
  noise: Float[Array, '*b m'] | None = None,
) -> Float[Array, '*b m']:
  """Samples a distribution that is constant in each segment.

  Args:
    borders: Borders of the segments, ascending; e = n + 1.
    probabilities: Probabilities of the segments. A small constant is added;
      they are not normalised, and noise above their sum maps to the last
      border.
    samples: Number of samples, m.
    noise: Arguments of the inverse cumulative distribution, [0, 1); None:
      `samples` even steps from 0 to 1.
  """
  probabilities = probabilities + _PROBABILITY_FLOOR
  if noise is None:
    noise = along_last(jnp.linspace(0.0, 1.0, samples), borders)
  below = jnp.cumsum(probabilities, -1) - probabilities
  # Fraction of each segment below a sample. Summing over all segments is faster
  # than a lookup of one: gathers are slow on accelerators.
  passed = noise[..., None] - below[..., None, :]
  passed = passed / probabilities[..., None, :]
  widths = jnp.diff(borders)[..., None, :]
  return borders[..., :1] + jnp.sum(jnp.clip(passed, 0, 1) * widths, -1)


def integrate(
  densities: Float[Array, 'b r n'],
  colors: Float[Array, 'b r n 3'],
  depths: Float[Array, 'b r n'],
) -> tuple[
  Float[Array, 'b r 3'],
  Float[Array, 'b r'],
  Float[Array, 'b r'],
  Float[Array, 'b r n'],
]:
  """Composites the samples of each ray; depths ascend.

  Returns:
    The weighted sum of the colours, the opacity, the weighted sum of the
    depths, and the weights of the samples.
  """
  lengths = jnp.concatenate(
    [jnp.diff(depths), jnp.full_like(depths[..., :1], _FAR)], -1
  )
  empty = jnp.exp(-densities * lengths)
  clear = jnp.cumprod(empty + _TRANSMITTANCE_FLOOR, -1)
  before = jnp.concatenate([jnp.ones_like(clear[..., :1]), clear[..., :-1]], -1)
  weights = (1 - empty) * before
  color = jnp.sum(weights[..., None] * colors, -2)
  return color, 1 - clear[..., -1], jnp.sum(weights * depths, -1), weights


def over_white(
  color: Float[Array, 'b r 3'], alpha: Float[Array, 'b r']
) -> Float[Array, 'b r 3']:
  """Blends colours over white; applies alpha twice, as the public code."""
  return 1 - alpha[..., None] + color * alpha[..., None]


def merge(
  a: tuple[Float[Array, 'b r n ...'], ...],
  b: tuple[Float[Array, 'b r m ...'], ...],
) -> list[Float[Array, 'b r n+m ...']]:
  """Merges two sets of samples by depth, the first array of each."""
  both = [jnp.concatenate(parts, 2) for parts in zip(a, b, strict=True)]
  order = jnp.argsort(both[0])
  return [
    jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 3)), 2)
    for x in both
  ]
