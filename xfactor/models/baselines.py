"""RUST and RayZer, the self-supervised ancestors that XFactor is held against.

RUST: Sajjadi et al., CVPR 2023 (arXiv 2211.14306). RayZer: Jiang et al., ICCV
2025 (arXiv 2505.00702). Neither was released with XFactor's code, whose authors
trained their own; so did we. Both are built of the same blocks here, of patches
as XFactor's, with as many parameters in full size (302 M), so that what differs
is how a pose comes about and what it may say. Images are float [-1, 1].

Of RUST's paper: the scene is a set of tokens of unposed context views; the pose
encoder sees the scene and a half of the target, and tells a short latent pose;
the decoder attends from (place in the image, pose) to the scene. Ours: a pose
of 8 numbers (what the paper's had could not be looked up here); patches in
place of convolutions, on both sides, so that a perceptual loss, too, can be had
of the picture; a pose encoder in which the target's tokens and the scene's
attend to each other; the mean of the target's is read.

Of RayZer's paper: a camera token for each view, all views attending to each
other; SE(3) relative to a canonical view by a continuous 6-D rotation, and one
focal length for all; Pluecker rays of the predicted cameras beside the pixels
of the context views and in place of those of the target; learned scene tokens,
updated with the context's and read by the target's; QK-norm; sinusoidal
encodings of place and view; cameras of the target predicted jointly with those
of the context. Ours: the reference as the canonical view; 1,024 wide, not 768.
"""

import dataclasses

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from xfactor.errors import UserError
from xfactor.models import attention, layers, se3


@dataclasses.dataclass(frozen=True)
class _Config:
  """Sizes and numerics of both.

  Attributes:
    features: Width of the tokens.
    heads: Attention heads.
    patch_size: Pixels along a patch's side.
    encoder_layers: Depth of what tells the poses.
    scene_layers: Depth of what makes the scene's tokens.
    decoder_layers: Depth of what draws.
    dtype: 'float32' or 'bfloat16', of matrix products and attention.
    attention: 'auto' or a kernel's name, see models/attention.py.
    remat: What the backward pass recomputes: 'none', 'dots' or 'full'.
  """

  features: int = 1024
  heads: int = 16
  patch_size: int = 16
  encoder_layers: int = 8
  scene_layers: int = 8
  decoder_layers: int = 8
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


@dataclasses.dataclass(frozen=True)
class RustConfig(_Config):
  """RUST's.

  Attributes:
    pose_dim: Channels of a latent pose.
  """

  pose_dim: int = 8


@dataclasses.dataclass(frozen=True)
class RayZerConfig(_Config):
  """RayZer's.

  Attributes:
    scene_tokens: Learned tokens that become the scene.
  """

  scene_tokens: int = 3072

  @property
  def pose_dim(self) -> int:
    return se3.DIM


class Block(nnx.Module):
  """Pre-norm attention, to each other or to given tokens, and an MLP."""

  def __init__(
    self, config: _Config, *, rngs: nnx.Rngs, kernel: str, cross: bool
  ):
    width, dtype = config.features, jnp.dtype(config.dtype)
    self.heads, self.kernel, self.dtype = config.heads, kernel, dtype
    self.norm_attention = layers.layer_norm(width, rngs=rngs)
    kwargs = {'rngs': rngs, 'dtype': dtype, 'use_bias': False}
    if cross:
      self.q = layers.linear(width, width, **kwargs)
      self.kv = layers.linear(width, 2 * width, **kwargs)
    else:
      self.qkv = layers.linear(width, 3 * width, **kwargs)
    self.norm_q = layers.HeadNorm(config.heads, width // config.heads)
    self.norm_k = layers.HeadNorm(config.heads, width // config.heads)
    self.out = layers.linear(width, width, **kwargs)
    self.norm_mlp = layers.layer_norm(width, rngs=rngs)
    self.mlp = layers.MLP((width, 4 * width, width), rngs=rngs, dtype=dtype)

  def __call__(
    self,
    x_BTC: Float[Array, 'b t c'],
    tokens: Float[Array, 'b s c'] | None = None,
  ) -> Float[Array, 'b t c']:
    x_BTC = x_BTC + self._attention(self.norm_attention(x_BTC), tokens)
    return x_BTC + self.mlp(self.norm_mlp(x_BTC))

  def _attention(self, x_BTC: Array, tokens: Array | None) -> Array:
    if tokens is None:
      qkv = jnp.split(self.qkv(x_BTC), 3, axis=-1)
    else:
      qkv = self.q(x_BTC), *jnp.split(self.kv(tokens), 2, axis=-1)
    q, k, v = (
      einops.rearrange(x, 'b t (n d) -> b t n d', n=self.heads) for x in qkv
    )
    q, k = self.norm_q(q), self.norm_k(k)
    out = attention.attend(
      *(x.astype(self.dtype) for x in (q, k, v)), kernel=self.kernel
    )
    return self.out(einops.rearrange(out, 'b t n d -> b t (n d)'))


class Trunk(nnx.Module):
  """Scanned blocks and the norm after them; float32 in and out."""

  def __init__(
    self,
    config: _Config,
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
  """Sines and cosines of two integers, `features` of them."""
  table = layers.rope_table(places, features)[..., ::2, :]
  return table.reshape(*table.shape[:-2], features)


def _view_codes(views: int, features: int) -> Float[Array, 'v c']:
  """Tells the views of an example apart: the first, the second, and so on."""
  index = jnp.arange(views)
  return sinusoids(jnp.stack([index, index], -1), features)


class Rust(nnx.Module):
  """RUST: a scene, a latent pose that peeks at the target, a decoder."""

  def __init__(
    self, config: RustConfig, *, rngs: nnx.Rngs, platform: str = 'cpu'
  ):
    kernel = attention.choose_kernel(
      config.attention, platform, jnp.dtype(config.dtype)
    )
    width, patch = config.features, config.patch_channels
    kwargs = {'rngs': rngs, 'dtype': jnp.dtype(config.dtype)}
    make = {'rngs': rngs, 'kernel': kernel}
    self.config = config
    self.embed_context = layers.linear(patch, width, **kwargs)
    self.scene_encoder = Trunk(config, config.scene_layers, **make)
    self.embed_target = layers.linear(patch, width, **kwargs)
    self.pose_encoder = Trunk(config, config.encoder_layers, **make)
    self.pose = layers.linear(
      width, config.pose_dim, rngs=rngs, dtype=jnp.float32
    )
    self.embed_query = layers.MLP((config.pose_dim, 4 * width, width), **kwargs)
    self.decoder = Trunk(config, config.decoder_layers, **make, cross=True)
    self.head = layers.MLP((width, 4 * width, patch), **kwargs)

  def encode(self, images: Float[Array, 'b v h w 3']) -> Float[Array, 'b v c']:
    """Latent poses of all views in the scene of the first."""
    return self._poses(images, images[:, :1])

  def encode_views(
    self, images: Float[Array, 'b v h w 3']
  ) -> Float[Array, 'b v c']:
    """Latent poses of contexts and target in the scene of the contexts."""
    return self._poses(images, images[:, :-1])

  def render(
    self, context: Float[Array, 'b c h w 3'], poses: Float[Array, 'b v z']
  ) -> Float[Array, 'b h w 3']:
    """The view at the last pose; the contexts' own poses are not looked at."""
    rows, columns = layers.grid(context, self.config.patch_size)
    places = layers.grid_positions(rows, columns)
    places = jnp.broadcast_to(places, (len(context), *places.shape))
    patches = self._decode(self._scene(context), poses[:, -1], places)
    height, width = context.shape[2:4]
    return layers.unpatchify(patches, self.config.patch_size, height, width)

  def reconstruct(
    self, images: Float[Array, 'b v h w 3'], left: Bool[Array, ' b']
  ) -> tuple[Float[Array, 'b h half 3'], Float[Array, 'b h half 3']]:
    """Draws one half of the target, the last view, from a look at the other.

    Args:
      images: Contexts, then the target.
      left: Whether the left half is looked at, or the right one.

    Returns:
      The half that was drawn, and what it should be.
    """
    scene = self._scene(images[:, :-1])
    target = images[:, -1]
    seen, places = self._half(target, left)
    pose = self._pose(scene, seen, places)
    truth, places = self._half(target, ~left)
    patches = self._decode(scene, pose, places)
    height, half = target.shape[1], target.shape[2] // 2
    drawn, truth = (
      layers.unpatchify(x, self.config.patch_size, height, half)
      for x in (patches, truth)
    )
    return drawn, truth

  def _half(
    self, images: Float[Array, 'b h w 3'], left: Bool[Array, ' b']
  ) -> tuple[Float[Array, 'b t p'], Int[Array, 'b t 2']]:
    """Patches of the left half, or of the right one, and their places."""
    rows, columns = layers.grid(images, self.config.patch_size)
    half = images.shape[2] // 2
    pixels = jnp.where(
      left[:, None, None, None], images[:, :, :half], images[:, :, half:]
    )
    places = layers.grid_positions(rows, columns // 2)[None]
    shift = jnp.where(left, 0, columns // 2)[:, None]
    places = jnp.stack(
      [
        jnp.broadcast_to(places[..., 0], (len(images), places.shape[1])),
        places[..., 1] + shift,
      ],
      -1,
    )
    return layers.patchify(pixels, self.config.patch_size), places

  def _scene(self, context: Array) -> Float[Array, 'b s c']:
    width, views = self.config.features, context.shape[1]
    places = layers.grid_positions(
      *layers.grid(context, self.config.patch_size)
    )
    code = sinusoids(places, width)[None] + _view_codes(views, width)[:, None]
    tokens = self.embed_context(
      layers.patchify(context, self.config.patch_size)
    )
    tokens = tokens.astype(jnp.float32) + code[None]
    return self.scene_encoder(einops.rearrange(tokens, 'b v t c -> b (v t) c'))

  def _pose(self, scene: Array, patches: Array, places: Array) -> Array:
    tokens = self.embed_target(patches).astype(jnp.float32)
    tokens = tokens + sinusoids(places, self.config.features)
    both = self.pose_encoder(jnp.concatenate([tokens, scene], axis=1))
    return self.pose(jnp.mean(both[:, : tokens.shape[1]], axis=1))

  def _poses(self, images: Array, context: Array) -> Array:
    views = images.shape[1]
    scene = jnp.repeat(self._scene(context), views, axis=0)
    flat = einops.rearrange(images, 'b v ... -> (b v) ...')
    # As in training: one half of a view tells its pose.
    seen, places = self._half(flat, jnp.ones(len(flat), bool))
    poses = self._pose(scene, seen, places)
    return einops.rearrange(poses, '(b v) z -> b v z', v=views)

  def _decode(self, scene: Array, pose: Array, places: Array) -> Array:
    code = sinusoids(places, self.config.features)
    queries = code + self.embed_query(pose)[:, None].astype(jnp.float32)
    return layers.to_picture(self.head(self.decoder(queries, scene)))


class RayZer(nnx.Module):
  """RayZer: cameras of all views, then a scene, then the target's rays."""

  def __init__(
    self, config: RayZerConfig, *, rngs: nnx.Rngs, platform: str = 'cpu'
  ):
    kernel = attention.choose_kernel(
      config.attention, platform, jnp.dtype(config.dtype)
    )
    width, patch = config.features, config.patch_channels
    rays = se3.RAY * config.patch_size**2
    kwargs = {'rngs': rngs, 'dtype': jnp.dtype(config.dtype)}
    make = {'rngs': rngs, 'kernel': kernel}
    self.config = config
    self.embed_view = layers.linear(patch, width, **kwargs)
    self.camera = nnx.Param(_small(rngs, (width,)))
    self.camera_estimator = Trunk(config, config.encoder_layers, **make)
    heads = {'rngs': rngs, 'dtype': jnp.float32}
    self.pose = layers.MLP((2 * width, width, se3.DIM - 1), **heads)
    self.focal = layers.MLP((width, width, 1), **heads)
    self.embed_context = layers.MLP((patch + rays, width, width), **kwargs)
    self.embed_target = layers.linear(rays, width, **kwargs)
    self.scene = nnx.Param(_small(rngs, (config.scene_tokens, width)))
    self.scene_encoder = Trunk(config, config.scene_layers, **make)
    self.decoder = Trunk(config, config.decoder_layers, **make)
    self.head = layers.linear(width, patch, **kwargs)

  def encode(self, images: Float[Array, 'b v h w 3']) -> Float[Array, 'b v c']:
    """Poses (`se3`) of all views, estimated jointly, relative to the first."""
    width, views = self.config.features, images.shape[1]
    code = _view_codes(views, width)
    places = layers.grid_positions(*layers.grid(images, self.config.patch_size))
    tokens = self.embed_view(layers.patchify(images, self.config.patch_size))
    tokens = tokens.astype(jnp.float32) + (
      sinusoids(places, width)[None, None] + code[None, :, None]
    )
    camera = (self.camera[...][None] + code)[None, :, None]
    camera = jnp.broadcast_to(camera, (len(images), *camera.shape[1:]))
    x_BVTC = jnp.concatenate([camera, tokens], axis=2)
    flat = einops.rearrange(x_BVTC, 'b v t c -> b (v t) c')
    y_BVTC = einops.rearrange(
      self.camera_estimator(flat), 'b (v t) c -> b v t c', v=views
    )
    cameras = y_BVTC[:, :, 0]
    reference = jnp.broadcast_to(cameras[:, :1], cameras.shape)
    poses = jnp.concatenate(
      [
        self.pose(jnp.concatenate([cameras, reference], -1)),
        self.focal(reference),
      ],
      -1,
    )
    return poses.at[:, 0].set(0)

  def encode_views(
    self, images: Float[Array, 'b v h w 3']
  ) -> Float[Array, 'b v c']:
    """As `encode`: all views are estimated jointly."""
    return self.encode(images)

  def render(
    self, context: Float[Array, 'b c h w 3'], poses: Float[Array, 'b v z']
  ) -> Float[Array, 'b h w 3']:
    """The view at the last pose, [-1, 1]; those before are the contexts'."""
    config = self.config
    grid = layers.grid(context, config.patch_size)
    places = layers.grid_positions(*grid)[None]
    rays = se3.plucker_patches(poses, places, grid, config.patch_size)
    pixels = layers.patchify(context, config.patch_size)
    given = self.embed_context(jnp.concatenate([pixels, rays[:, :-1]], -1))
    given = einops.rearrange(given, 'b v t c -> b (v t) c').astype(jnp.float32)
    scene = jnp.broadcast_to(self.scene[...], (len(context), *self.scene.shape))
    scene = self.scene_encoder(jnp.concatenate([scene, given], axis=1))
    target = self.embed_target(rays[:, -1]).astype(jnp.float32)
    both = jnp.concatenate([target, scene[:, : config.scene_tokens]], axis=1)
    y = self.head(self.decoder(both)[:, : target.shape[1]])
    height, width = context.shape[2:4]
    return layers.unpatchify(
      layers.to_picture(y), config.patch_size, height, width
    )

  def reconstruct(
    self, images: Float[Array, 'b v h w 3'], left: Bool[Array, ' b']
  ) -> tuple[Float[Array, 'b h w 3'], Float[Array, 'b h w 3']]:
    """Draws the target, the last view, and what it should be."""
    del left
    return self.render(images[:, :-1], self.encode(images)), images[:, -1]


def _small(rngs: nnx.Rngs, shape: tuple[int, ...]) -> Array:
  return 0.02 * jax.random.normal(rngs.params(), shape)
