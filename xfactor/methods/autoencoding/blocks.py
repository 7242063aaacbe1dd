"""Shared blocks of RUST and RayZer, the self-supervised baselines of XFactor.

RUST: Sajjadi et al., CVPR 2023 (arXiv 2211.14306). RayZer: Jiang et al., ICCV
2025 (arXiv 2505.00702). XFactor's authors trained their own versions but did
not release them. Both use the same blocks here, on patches as XFactor, with as
many parameters in full size (302 M): they differ only in how a pose is
estimated and what it can encode. Images are float [-1, 1].

From RUST's paper: the scene is a set of tokens of unposed context views; the
pose encoder sees the scene and half of the target and predicts a short latent
pose; the decoder attends from (image position, pose) to the scene. Different
here: poses of 8 numbers (the paper's number could not be looked up); patches
instead of convolutions in encoder and decoder, which also allows a perceptual
loss; a pose encoder with joint attention over target and scene tokens, read
from the mean of the target tokens.

From RayZer's paper: one camera token per view and attention over all views;
SE(3) relative to a canonical view with a continuous 6-D rotation, and a shared
focal length; Pluecker rays of the predicted cameras, concatenated to the pixels
of the context views and replacing those of the target; learned scene tokens,
updated with the context tokens and read by the target tokens; QK-norm;
sinusoidal encodings of position and view; cameras of target and context
predicted jointly. Different here: the reference is the canonical view; the
width is 1,024, not 768.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from xfactor import limits
from xfactor.errors import UserError
from xfactor.nn import block, layers


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes and numerics of RUST and RayZer.

  Attributes:
    features: Width of the tokens.
    heads: Attention heads.
    patch_size: Pixels along a patch's side.
    encoder_layers: Depth of the pose encoder.
    scene_layers: Depth of the scene encoder.
    decoder_layers: Depth of the decoder.
    tie_qk: Whether key projections start equal to query projections, as in
      XFactor's settings for small models; not in the publications.
    pose_gain: Initial factor on the last kernel of the pose head; the same.
    dtype: Type of matrix products and attention: 'float32' or 'bfloat16'.
    attention: 'auto' or the name of a kernel; see nn/attention.py.
    remat: Recomputation in the backward pass: 'none', 'dots' or 'full'.
  """

  features: int = limits.at_least(1024, 4)
  heads: int = limits.at_least(16, 1)
  patch_size: int = limits.at_least(16, 1)
  encoder_layers: int = limits.at_least(8, 1)
  scene_layers: int = limits.at_least(8, 1)
  decoder_layers: int = limits.at_least(8, 1)
  tie_qk: bool = False
  pose_gain: float = limits.at_least(1.0, 0)
  dtype: str = 'bfloat16'
  attention: str = 'auto'
  remat: str = 'full'

  def __post_init__(self):
    if self.features % self.heads or self.features % 4:
      raise UserError(
        f'config.model.features={self.features} must be a multiple of 4 and of '
        f'config.model.heads={self.heads}'
      )
    if self.dtype not in ('float32', 'bfloat16'):
      raise UserError(
        f'config.model.dtype={self.dtype!r}: choose "float32" or "bfloat16"'
      )

  @property
  def patch_channels(self) -> int:
    return 3 * self.patch_size**2


class Block(block.Block):
  """A block with norms of the heads, as in XFactor."""

  def __init__(
    self, config: Config, *, rngs: nnx.Rngs, kernel: str, cross: bool
  ):
    width, dtype = config.features, jnp.dtype(config.dtype)
    self.heads, self.kernel, self.dtype = config.heads, kernel, dtype
    self.norm_attention = layers.layer_norm(width, rngs=rngs)
    kwargs = {'rngs': rngs, 'dtype': dtype, 'use_bias': False}
    if cross:
      self.q = layers.linear(width, width, **kwargs)
      self.kv = layers.linear(width, 2 * width, **kwargs)
      keys, start = self.kv.kernel, 0
    else:
      self.qkv = layers.linear(width, 3 * width, **kwargs)
      keys, start = self.qkv.kernel, width
    if config.tie_qk:
      queries = (self.q if cross else self.qkv).kernel[...][:, :width]
      keys[...] = keys[...].at[:, start : start + width].set(queries)
    self.norm_q = layers.HeadNorm(config.heads, width // config.heads)
    self.norm_k = layers.HeadNorm(config.heads, width // config.heads)
    self.out = layers.linear(width, width, rows=True, **kwargs)
    self.norm_mlp = layers.layer_norm(width, rngs=rngs)
    self.mlp = layers.MLP((width, 4 * width, width), rngs=rngs, dtype=dtype)

  def prepare(self, q, k, v):
    q, k = self.norm_q(q), self.norm_k(k)
    return tuple(x.astype(self.dtype) for x in (q, k, v))


class Trunk(nnx.Module):
  """Scanned blocks and a final norm; float32 in and out."""

  def __init__(
    self,
    config: Config,
    depth: int,
    *,
    rngs: nnx.Rngs,
    kernel: str,
    cross: bool = False,
  ):
    def make_block(rngs: nnx.Rngs) -> Block:
      return Block(config, rngs=rngs, kernel=kernel, cross=cross)

    self.stack = layers.Stack(depth, make_block, rngs=rngs, remat=config.remat)
    self.norm = layers.layer_norm(config.features, rngs=rngs)

  def __call__(
    self, x_BTC: Float[Array, 'b t c'], *tokens: Float[Array, 'b s c']
  ) -> Float[Array, 'b t c']:
    return self.norm(self.stack(x_BTC.astype(jnp.float32), *tokens))


def sinusoids(
  places: Int[Array, '*b 2'], features: int
) -> Float[Array, '*b c']:
  """Encodes pairs of integers as `features` sines and cosines."""
  table = layers.rope_table(places, features)[..., ::2, :]
  return table.reshape(*table.shape[:-2], features)


def view_codes(views: int, features: int) -> Float[Array, 'v c']:
  """Encodes the index of each view of an example."""
  index = jnp.arange(views)
  return sinusoids(jnp.stack([index, index], -1), features)
