"""A small network for the relative pose of two pictures.

Attention matches tokens of both pictures. Its values are positions in the
picture, so its output contains mean and variance of the matching position (as
in GMFlow, Xu et al. 2022). A few layers over this field of displacements
predict the pose: the rotation by 6 numbers (Zhou et al. 2019), the translation
as direction and length, and the expected error of each. The network does not
get the focal length.
"""

import dataclasses
import math
from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from xfactor.nn import attention, layers
from xfactor.nn.functional import Functional

PARTS = ('rotation', 'direction', 'length')
STRIDE = 4
# Positions, their squares and products are the first channels of the values.
_PLACES = 4
_NEAR = 0.3  # Spread of displacements, in half pictures.
_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of the network.

  Attributes:
    image_size: Pixels along a side; a multiple of 8.
    features: Width of the encoder of single pictures.
    encoder_layers: Number of residual blocks of this encoder.
    heads: Number of independent matchings of the two pictures.
    head_dim: Width of the descriptors that are matched; at least 8.
    width: Width of the layers over the displacements.
    layers: Number of these layers.
  """

  image_size: int = 64
  features: int = 48
  encoder_layers: int = 1
  heads: int = 1
  head_dim: int = 32
  width: int = 96
  layers: int = 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Motion:
  """Transform from the first camera's coordinates to the second's.

  Attributes:
    rotation: float32 [*b, 3, 3]; x_b = rotation x_a + translation.
    direction: float32 [*b, 3], unit vector of the translation.
    log_length: float32 [*b], logarithm of the translation's length.
    log_errors: float32 [*b, 3], logarithms of the expected errors in the order
      of `PARTS`: radians, radians (both as chords) and of `log_length`.
    places: float32 [*b, t, n, 2], position in the second picture that each head
      finds for each token of the first: (row, column), -1 to 1. For training.
  """

  rotation: Any
  direction: Any
  log_length: Any
  log_errors: Any
  places: Any = None


class PoseNet(nnx.Module):
  """Predicts the relative poses of pairs of pictures."""

  def __init__(self, config: Config, *, rngs: nnx.Rngs):
    self.config = config
    kwargs = {'rngs': rngs, 'dtype': jnp.float32}
    features = config.features
    self.embed = layers.linear(9 * 3 * STRIDE**2, features, **kwargs)
    self.encoder = nnx.List(
      [_Local(features, rngs=rngs) for _ in range(config.encoder_layers)]
    )
    self.norm = layers.layer_norm(features, rngs=rngs)
    matched = config.heads * config.head_dim
    self.describe = layers.linear(
      features, 2 * matched - config.heads, **kwargs
    )
    self.norm_match = layers.HeadNorm(config.heads, config.head_dim)
    self.embed_match = layers.linear(
      4 * (matched + 3 * config.heads + features + 2), config.width, **kwargs
    )
    self.trunk = nnx.List(
      [_Global(config.width, rngs=rngs) for _ in range(config.layers)]
    )
    self.norm_out = layers.layer_norm(config.width, rngs=rngs)
    self.squeeze = layers.linear(config.width, 16, **kwargs)
    tokens = (config.image_size // (2 * STRIDE)) ** 2
    self.head = layers.MLP((16 * tokens, 2 * config.width, 13), **kwargs)

  def encode(
    self, images: UInt8[Array, 'b h w 3'] | Float[Array, 'b h w 3']
  ) -> Float[Array, 'b y x c']:
    """Features of single pictures, uint8 or in [-1, 1]."""
    if images.dtype == jnp.uint8:
      images = layers.to_float(images)
    x = einops.rearrange(
      images, 'b (h y) (w x) c -> b h w (y x c)', y=STRIDE, x=STRIDE
    )
    x = self.embed(_neighbours(x))
    for layer in self.encoder:
      x = layer(x)
    return self.norm(x)

  def match(
    self, a: Float[Array, 'b y x c'], b: Float[Array, 'b y x c']
  ) -> tuple[
    Float[Array, 'b t n e'], Float[Array, 'b t n 2'], Float[Array, 'b t n 2']
  ]:
    """Finds each token of `a` in `b`, with every head.

    Returns:
      Features of the match; its position relative to the token's, (row, column)
      in half pictures; and the variance of this position.
    """
    depth = self.config.head_dim
    # The same descriptors for both: even random ones find matches.
    (q, _), (k, v) = (
      jnp.split(
        einops.rearrange(
          self.describe(x), 'b y x (n d) -> b (y x) n d', n=self.config.heads
        ),
        (depth,),
        axis=-1,
      )
      for x in (a, b)
    )
    q, k = (2 * self.norm_match(x) for x in (q, k))
    grid = jnp.broadcast_to(
      _grid(a.shape[1])[None, :, None], (*k.shape[:-1], 2)
    )
    # Near matches are likelier: adds -|p - q|^2 / (2 spread^2), without terms
    # that all keys of a query share; `attend` divides by the root of the width.
    near = math.sqrt(depth + 3) / _NEAR**2
    distance2 = jnp.sum(grid**2, -1, keepdims=True)
    q = jnp.concatenate([q, near * grid, jnp.ones_like(distance2)], -1)
    k = jnp.concatenate([k, grid, -near / 2 * distance2], -1)
    out = attention.attend(q, k, jnp.concatenate([grid, grid**2, v], -1))
    there, squares, rest = jnp.split(out, (2, _PLACES), axis=-1)
    return rest, there - grid, squares - there**2

  def __call__(
    self, a: Float[Array, 'b y x c'], b: Float[Array, 'b y x c']
  ) -> Motion:
    """Predicts the motion from pictures `a` to `b`, given by features."""
    side = a.shape[1]
    rest, moved, spread = self.match(a, b)
    # Scaled so that motion dominates appearance.
    match = jnp.concatenate([4 * moved, 4 * spread, 0.1 * rest], -1)
    tokens = match.shape[:2]
    x = jnp.concatenate(
      [
        match.reshape(*tokens, -1),
        0.1 * a.reshape(*tokens, -1),
        jnp.broadcast_to(_grid(side)[None], (*tokens, 2)),
      ],
      -1,
    )
    x = einops.rearrange(
      x, 'b (h y w x) c -> b (h w) (y x c)', h=side // 2, y=2, x=2
    )
    x = self.embed_match(x)
    for layer in self.trunk:
      x = layer(x)
    x = self.squeeze(self.norm_out(x))
    out = self.head(x.reshape(len(x), -1))
    turn, direction, log_length, log_errors = jnp.split(out, (6, 9, 10), -1)
    # Start with small rotations, as nearly all are small.
    identity = jnp.array([[1, 0, 0, 0, 1, 0]], jnp.float32)
    return Motion(
      rotation=rotation_of(0.1 * turn + identity),
      direction=_unit(direction),
      log_length=log_length[:, 0],
      log_errors=log_errors,
      places=moved + _grid(side)[None, :, None],
    )


class _Local(nnx.Module):
  """A residual block over 3 x 3 neighbours."""

  def __init__(self, features: int, *, rngs: nnx.Rngs):
    self.norm = layers.layer_norm(features, rngs=rngs)
    self.mlp = layers.MLP(
      (9 * features, features, features), rngs=rngs, dtype=jnp.float32
    )

  def __call__(self, x: Float[Array, 'b y x c']) -> Float[Array, 'b y x c']:
    return x + self.mlp(_neighbours(self.norm(x)))


class _Global(nnx.Module):
  """A pre-norm transformer layer."""

  def __init__(self, features: int, *, rngs: nnx.Rngs):
    kwargs = {'rngs': rngs, 'dtype': jnp.float32}
    self.norm_attention = layers.layer_norm(features, rngs=rngs)
    self.qkv = layers.linear(features, 3 * features, **kwargs)
    self.out = layers.linear(features, features, **kwargs)
    self.norm_mlp = layers.layer_norm(features, rngs=rngs)
    self.mlp = layers.MLP((features, 2 * features, features), **kwargs)

  def __call__(self, x: Float[Array, 'b t c']) -> Float[Array, 'b t c']:
    q, k, v = (
      einops.rearrange(y, 'b t (n d) -> b t n d', d=32)
      for y in jnp.split(self.qkv(self.norm_attention(x)), 3, axis=-1)
    )
    mixed = attention.attend(q, k, v)
    x = x + self.out(mixed.reshape(x.shape))
    return x + self.mlp(self.norm_mlp(x))


def _neighbours(x: Float[Array, 'b y x c']) -> Float[Array, 'b y x c9']:
  """Concatenates the features of the 3 x 3 cells around each; zeros outside.

  Replaces a convolution, whose gradient is slow on CPUs, by a matrix product.
  """
  y = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  height, width = x.shape[1:3]
  return jnp.concatenate(
    [y[:, i : i + height, j : j + width] for i in range(3) for j in range(3)],
    -1,
  )


def _grid(side: int) -> Float[Array, 't 2']:
  """(row, column) of each cell, -1 to 1 over the picture, row-major."""
  cells = layers.grid_positions(side, side).astype(jnp.float32)
  return (2 * cells + 1) / side - 1


def _unit(x: Float[Array, '*b c']) -> Float[Array, '*b c']:
  return x * jax.lax.rsqrt(jnp.sum(x**2, -1, keepdims=True) + _EPS**2)


def rotation_of(six: Float[Array, '*b 6']) -> Float[Array, '*b 3 3']:
  """Rotation whose first two rows are six numbers after Gram-Schmidt."""
  first, second = _unit(six[..., :3]), six[..., 3:]
  along = jnp.sum(first * second, -1, keepdims=True)
  second = _unit(second - along * first)
  return jnp.stack([first, second, jnp.cross(first, second)], -2)


def errors(
  motion: Motion, pose: Float[Array, 'b 3 4'], min_length: float = 1e-3
) -> tuple[Float[Array, 'b 3'], Float[Array, 'b 3']]:
  """Returns the errors of motions and their weights.

  Args:
    motion: The estimate.
    pose: The true x_b = [R|t] x_a.
    min_length: Smallest length of a translation that has a direction.

  Returns:
    Errors in the order of `PARTS`: chords of the angles (2 sin of half of it,
    about radians) and the difference of the logarithms; and weights 0 or 1,
    which are 0 for undefined errors.
  """
  turn = jnp.sum((motion.rotation - pose[..., :3]) ** 2, (-2, -1)) / 2
  length2 = jnp.sum(pose[..., 3] ** 2, -1)
  moves = length2 > min_length**2
  length2 = jnp.where(moves, length2, 1.0)
  true = pose[..., 3] / jnp.sqrt(length2)[..., None]
  direction = jnp.sum((motion.direction - true) ** 2, -1)
  squares = jnp.stack([turn, direction], -1)
  length = jnp.abs(motion.log_length - 0.5 * jnp.log(length2))
  out = jnp.concatenate([jnp.sqrt(squares + _EPS), length[..., None]], -1)
  weight = jnp.stack([jnp.ones_like(moves), moves, moves], -1)
  return out, weight.astype(jnp.float32)


def loss(motion: Motion, pose: Float[Array, 'b 3 4']) -> Float[Array, '']:
  """Laplace negative log likelihood, up to a constant.

  Each error is divided by its expected value, whose logarithm is added, so that
  hard pairs and parts have no more weight than easy ones.
  """
  error, weight = errors(motion, pose)
  log = motion.log_errors
  nll = error * jnp.exp(-log) + log
  return jnp.mean(jnp.sum(weight * nll, -1))


def true_places(
  depth: Float[Array, 'b t'],
  intrinsics: Float[Array, 'b 4'],
  pose: Float[Array, 'b 3 4'],
) -> tuple[Float[Array, 'b t 2'], Float[Array, 'b t']]:
  """Projects the centre of each token into the second picture.

  Args:
    depth: Z-depth at the centres, row-major; 0 where unknown.
    intrinsics: Normalised intrinsics of both pictures.
    pose: Transform from the first camera to the second.

  Returns:
    (row, column), -1 to 1 over the picture; and weights 0 or 1, whether this
    position is known and inside. Occlusions are ignored.
  """
  side = math.isqrt(depth.shape[1])
  columns_rows = (_grid(side)[None, :, ::-1] + 1) / 2
  focal, centre = intrinsics[:, None, :2], intrinsics[:, None, 2:]
  rays = jnp.pad(
    (columns_rows - centre) / focal, [(0, 0), (0, 0), (0, 1)], constant_values=1
  )
  points = jnp.sum(
    pose[:, None, :, :3] * (rays * depth[..., None])[:, :, None], -1
  )
  points = points + pose[:, None, :, 3]
  ahead = (depth > 0) & (points[..., 2] > _EPS)
  z = jnp.where(ahead, points[..., 2], 1.0)[..., None]
  places = 2 * (points[..., :2] / z * focal + centre)[..., ::-1] - 1
  inside = ahead & (jnp.abs(places) < 1).all(-1)
  return places, inside.astype(jnp.float32)


def matching_loss(
  motion: Motion,
  depth: Float[Array, 'b t'],
  intrinsics: Float[Array, 'b 4'],
  pose: Float[Array, 'b 3 4'],
) -> Float[Array, '']:
  """Mean distance of the matches from the true places, in half pictures."""
  places, weight = true_places(depth, intrinsics, pose)
  squares = jnp.sum((motion.places - places[:, :, None]) ** 2, -1)
  distance = jnp.sqrt(squares + _EPS).mean(-1)
  return jnp.sum(weight * distance) / jnp.maximum(weight.sum(), 1.0)


def make(config: Config) -> Functional[PoseNet]:
  """Returns the network as functions of a flat dict of parameters."""
  return Functional(lambda rngs: PoseNet(config, rngs=rngs))
