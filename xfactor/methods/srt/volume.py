"""Drawing a volume of densities and colours along rays, as NeRF does.

Pure functions of rays [b, r] and samples along them, all float32. They follow
the public SRT code (stelzner/srt, utils/nerf.py) to the letter, constants too.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from xfactor.nn.layers import along_last

# Every segment gets this much probability, so that none is out of reach.
_PROBABILITY_FLOOR = 1e-5
# No segment dims what is behind it by more.
_TRANSMITTANCE_FLOOR = 1e-10
# The length of a ray's last segment, whose end is open.
_FAR = 1e10


def points(
  origins: Float[Array, 'b r 3'],
  directions: Float[Array, 'b r 3'],
  depths: Float[Array, 'b r n'],
) -> Float[Array, 'b r n 3']:
  """The points at distances `depths` from the rays' origins."""
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
  """One depth in each of equal parts of the ray, ascending.

  Args:
    origins: Of the rays.
    directions: Of unit length.
    samples: Their number, n.
    near: Where the first part begins.
    far: Where the last one ends.
    min_z: Rays end where they meet the plane z = min_z, if not before. Where
      that is nearer than `near`, depths descend, as in the public code.
    noise: Where in each part, [0, 1); None: in the middle.
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
  """Depths where the coarse samples found something; not in order.

  Of a coarse sample's weight three quarters go to the segment before it and one
  to that after it.

  Args:
    weights: Of the coarse samples, from `integrate`.
    depths: Of the coarse samples, at least two.
    samples: The number of fine ones, m.
    near: Where the first segment begins.
    noise: Of `sample_segments`.
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
  """Samples of a distribution that is constant in each segment.

  Args:
    borders: Of the segments, ascending; k = n + 1.
    probabilities: Of the segments. A little is added to each; they are not
      normalised, and what is beyond their sum lands on the last border.
    samples: Their number, m.
    noise: Where to read the inverse of the cumulated probabilities, [0, 1);
      None: at `samples` even steps from 0 to 1.
  """
  probabilities = probabilities + _PROBABILITY_FLOOR
  if noise is None:
    noise = along_last(jnp.linspace(0.0, 1.0, samples), borders)
  below = jnp.cumsum(probabilities, -1) - probabilities
  # How far through each segment a sample has come. Summing over all segments is
  # faster than looking up one: accelerators gather slowly.
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
  """What is seen along each ray; depths ascend.

  Returns:
    The sum of the colours by weight, the opacity, the sum of the depths by
    weight, and the weights of the samples.
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
  """Colours of `integrate` on white; dimmed twice, as in the public code."""
  return 1 - alpha[..., None] + color * alpha[..., None]


def merge(
  a: tuple[Float[Array, 'b r n ...'], ...],
  b: tuple[Float[Array, 'b r m ...'], ...],
) -> list[Float[Array, 'b r n+m ...']]:
  """Puts two sets of samples into the order of depths, their first arrays."""
  both = [jnp.concatenate(parts, 2) for parts in zip(a, b, strict=True)]
  order = jnp.argsort(both[0])
  return [
    jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 3)), 2)
    for x in both
  ]
